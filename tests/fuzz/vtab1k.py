"""Readers of VTAB-1k: original archives, TFDS's records, lists and manifests."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.data.layouts import write_vtab
from tests.fuzz.reader import Reader
from tests.vtab1k import fakes
from tests.vtab1k.readers import fakes as pictures
from vpeft.data import vtab
from vpeft.vtab1k import community, manifest, tfds, verify
from vpeft.vtab1k.archives import Archive, Stored
from vpeft.vtab1k.readers import READERS as NAMES
from vpeft.vtab1k.readers import reader, sun397

_GOLDEN = Path(__file__).parents[1] / "golden"
_FEW = 3  # images that are decoded after the lists were read


def _originals(task: str, folder: Path, few: int = 3) -> Any:
    with mock.patch.object(sun397, "fetch_wheel", return_value=folder / "lists.whl"):
        found = reader(task).read(folder, task)
    return {split: [example.image() for example in examples[:few]] for split, examples in found.items()}


def _make(task: str, folder: Path) -> None:
    name = NAMES[task]
    if name == "sun397":
        pictures.sun397_wheel(folder / "lists.whl")
    few: dict[str, dict[str, int]] = {"dsprites": {"train": 80}, "cifar100": {"train": 3, "test": 2}}
    few |= {"smallnorb": {"train": 4, "test": 3}, "dmlab": {"train": 4, "validation": 2, "test": 2}}
    few |= {"patch_camelyon": {"train": 3, "valid": 2, "test": 2}}
    make: Callable[..., object] = getattr(fakes, name, None) or getattr(pictures, name)
    make(folder, few[name]) if name in few else make(folder)


def _original(task: str, file: str, form: str = "bytes", member: str | None = None) -> Reader:
    return Reader(partial(_make, task), file, partial(_originals, task), form, member)


def _prepared(folder: Path) -> None:
    with zipfile.ZipFile(_GOLDEN / "tfds_cifar100.zip") as opened:
        opened.extractall(folder)


def _shards(folder: Path) -> Any:
    return [tfds._shards(folder / "cifar100/3.0.2", split) for split in ("train", "test")]


def _records(folder: Path) -> Any:
    file = folder / "cifar100/3.0.2/cifar100-test.tfrecord-00000-of-00001"
    found = tfds._index(file, 20)
    shard = Stored(file, "file", file.name, 0, file.stat().st_size)
    return [tfds._load("cifar100", shard, *found[0])]


def _adopted(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return community.adopt("eurosat", folder)


def _manifest(folder: Path) -> Any:
    content = manifest.read(folder / "eurosat", "eurosat")
    manifest.check_lists(folder / "eurosat", content, "eurosat")
    return content


def _with_manifest(folder: Path) -> None:
    write_vtab(folder)
    _adopted(folder)


def _known(folder: Path) -> None:
    _with_manifest(folder)
    (folder / "known.json").write_bytes((folder / "eurosat/manifest.json").read_bytes())


def _verified(folder: Path) -> Any:
    """The manifest of known.json with the hash that fits it: a hash is no signature."""
    try:
        content = json.loads((folder / "known.json").read_bytes())
        told = {**content, "sha256": manifest._digest(content)}
    except (ValueError, RecursionError, TypeError, AttributeError):
        told = None
    (folder / "eurosat/manifest.json").write_text(json.dumps(told))
    found = verify.verify("eurosat", folder)
    return found, vtab.read(folder / "eurosat", "eurosat", "train800").provenance


def _packed(suffix: str, folder: Path) -> None:
    with tarfile.open(folder / "a.tar", f"w:{suffix}") as opened:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name in ("a/b.txt", "a/c.txt"):
            info = tarfile.TarInfo(name)
            info.size = 300
            opened.addfile(info, io.BytesIO(b"abc" * 100))


def _archived(folder: Path) -> Any:
    found = Archive(folder / "a.tar")
    return [found.read(name) for name in ("a/b.txt", "a/c.txt")]


READERS: dict[str, Reader] = {
    "vtab lists": Reader(
        write_vtab, "eurosat/train800.txt", lambda at: vtab.read(at / "eurosat", "eurosat", "train800"), "text"
    ),
    "vtab manifest": Reader(_with_manifest, "eurosat/manifest.json", _manifest, "json"),
    "vtab manifest with a true hash": Reader(_known, "known.json", _verified, "json"),
    "archive .tar.xz": Reader(partial(_packed, "xz"), "a.tar", _archived),
    "archive .tar.bz2": Reader(partial(_packed, "bz2"), "a.tar", _archived),
    "community lists": Reader(write_vtab, "eurosat/train800.txt", _adopted, "text"),
    "tfds info": Reader(_prepared, "cifar100/3.0.2/dataset_info.json", _shards, "json"),
    "tfds records": Reader(_prepared, "cifar100/3.0.2/cifar100-test.tfrecord-00000-of-00001", _records),
    "caltech101": _original("caltech101", "caltech-101.zip"),
    "caltech101 inner": _original("caltech101", "caltech-101.zip", member="caltech-101/101_ObjectCategories.tar.gz"),
    "cifar100": _original("cifar100", "cifar-100-binary.tar.gz"),
    "cifar100 rows": _original("cifar100", "cifar-100-binary.tar.gz", member="cifar-100-binary/test.bin"),
    "clevr": _original("clevr_dist", "CLEVR_v1.0.zip"),
    "clevr scenes": _original("clevr_dist", "CLEVR_v1.0.zip", "json", "CLEVR_v1.0/scenes/CLEVR_val_scenes.json"),
    "retinopathy": Reader(
        partial(_make, "diabetic_retinopathy"),
        "trainLabels.csv",
        partial(_originals, "diabetic_retinopathy", few=0),  # its images are large
        "text",
    ),
    "dmlab": _original("dmlab", "dmlab.tar.gz"),
    "dmlab records": _original("dmlab", "dmlab.tar.gz", member="dmlab-test.tfrecord-00000-of-00002"),
    "dsprites": _original("dsprites_loc", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"),
    "dsprites classes": _original(
        "dsprites_loc", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", member="latents_classes.npy"
    ),
    "dtd": _original("dtd", "dtd-r1.0.1.tar.gz"),
    "eurosat": _original("eurosat", "EuroSAT.zip"),
    "kitti": _original("kitti", "data_object_image_2.zip"),
    "kitti labels": _original("kitti", "data_object_label_2.zip", "text", "training/label_2/000003.txt"),
    "kitti mapping": _original("kitti", "devkit_object.zip", "text", "mapping/train_mapping.txt"),
    "kitti order": _original("kitti", "devkit_object.zip", "text", "mapping/train_rand.txt"),
    "pets": _original("oxford_iiit_pet", "annotations.tar.gz", "text", "annotations/trainval.txt"),
    "patch_camelyon": _original("patch_camelyon", "camelyonpatch_level_2_split_test_y.h5.gz"),
    "patch_camelyon inner": _original("patch_camelyon", "camelyonpatch_level_2_split_test_x.h5.gz", member=""),
    "smallnorb": _original("smallnorb_azi", "smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat.gz"),
    "smallnorb info": _original("smallnorb_azi", "smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat.gz", member=""),
    "sun397 lists": _original("sun397", "lists.whl"),
}
