"""Readers of the original archives, by task; a module is imported when its task is asked for."""

from __future__ import annotations

import importlib
from typing import cast

from vpeft.vtab1k.source import Reader

READERS = {
    "caltech101": "caltech101",
    "cifar100": "cifar100",
    "dtd": "dtd",
    "oxford_flowers102": "oxford_flowers102",
    "oxford_iiit_pet": "oxford_iiit_pet",
    "sun397": "sun397",
    "svhn": "svhn",
    "patch_camelyon": "patch_camelyon",
    "eurosat": "eurosat",
    "resisc45": "resisc45",
    "diabetic_retinopathy": "diabetic_retinopathy",
    "clevr_count": "clevr",
    "clevr_dist": "clevr",
    "dmlab": "dmlab",
    "kitti": "kitti",
    "dsprites_loc": "dsprites",
    "dsprites_ori": "dsprites",
    "smallnorb_azi": "smallnorb",
    "smallnorb_ele": "smallnorb",
}


def reader(task: str) -> Reader:
    """The reader of a task's original archives."""
    return cast(Reader, importlib.import_module(f"vpeft.vtab1k.readers.{READERS[task]}"))
