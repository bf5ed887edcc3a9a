"""CIFAR-100 with 220 images in its official layout, and VTAB's cut scaled down to it: 8 / 2 / 100 images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vtab1k import fakes
from vpeft.vtab1k import cuts, originals, reference, verify
from vpeft.vtab1k.selection import Selection

SIZES = {"train": 120, "test": 100}


def shrink(patch: pytest.MonkeyPatch, task: str = "cifar100", sizes: dict[str, int] | None = None) -> None:
    """Make VTAB's cut expect splits of these sizes, and lists of 8 and 2 images, and no published choice."""
    patch.setitem(cuts.CUTS, task, replace(cuts.CUTS[task], sizes=sizes or SIZES))
    patch.delitem(reference.CHOICE, task, raising=False)
    for module in (cuts, verify):
        patch.setattr(module, "TRAIN", 8)
        patch.setattr(module, "VAL", 2)


def archives(folder: Path) -> Path:
    """A folder with the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    fakes.cifar100(folder, SIZES)
    return folder


def selection(folder: Path) -> Selection:
    """The images of the archive in this folder, which is made where it is missing."""
    if not folder.exists():
        archives(folder)
    return originals.select("cifar100", folder, accept_other=True)
