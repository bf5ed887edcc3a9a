"""PatchCamelyon, patches of lymph nodes with or without tumour (Veeling et al., MICCAI 2018, arXiv:1806.03962).

https://github.com/basveeling/pcam; CC0.

As TFDS's patch_camelyon 2.0.0 reads it: the key is `train_`, `valid_` or `test_` and the place in the HDF5 file. The
files are gzipped, and HDF5 is read here and there, so each is unpacked once beside its archive (8 GB in all).
"""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vpeft.fetch import write_atomic
from vpeft.vtab1k.readers.members import checked
from vpeft.vtab1k.source import Example, Needed, locate

_NAME = "camelyonpatch_level_2_split_{}_{}.h5.gz"
_FILES = {
    ("train", "x"): ("d619e741468a7ab35c7e4a75e6821b7e7e6c9411705d45708f2a0efc8960656c", 6_421_353_462),
    ("train", "y"): ("b74126d2c01b20d3661f9b46765d29cf4e4fba6faba29c8e0d09d406331ab75a", 21_378),
    ("valid", "x"): ("f82ee1670d027b4ec388048d9eabc2186b77c009655dae76d624c0ecb053ccb2", 805_965_320),
    ("valid", "y"): ("ce1ae30f08feb468447971cfd0472e7becd0ad96d877c64120c72571439ae48c", 3_038),
    ("test", "x"): ("79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245", 800_875_929),
    ("test", "y"): ("0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef", 3_040),
}


def _needed(part: str, kind: str) -> Needed:
    name = _NAME.format(part, kind)
    sha256, size = _FILES[part, kind]
    return Needed(name, f"https://zenodo.org/record/2546921/files/{name}", sha256=sha256, size=size)


ARCHIVES = tuple(_needed(*file) for file in _FILES)
HOW = ""
_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_CLASSES = 2


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (262,144), validation and test (32,768 each); 96 x 96 pixels.

    Raises:
        ValueError: A file is missing, damaged or not what is expected, or h5py is not installed.
        OSError: There is no space to unpack.
    """
    return {split: _split(folder, part) for split, part in _SPLITS.items()}


def _split(folder: Path, part: str) -> list[Example]:
    images, labels = (_unpacked(locate(folder, _needed(part, kind), HOW)) for kind in "xy")
    values = _dataset(labels, "y", os.getpid())[:].reshape(-1).tolist()
    shape = _dataset(images, "x", os.getpid()).shape
    if shape != (len(values), 96, 96, 3):
        raise ValueError(f"{images} has images of the shape {shape}; {labels} has {len(values)} labels.")
    return [
        Example(f"{part}_{i}", checked(label, _CLASSES, f"{part}_{i}"), partial(_image, images, i))
        for i, label in enumerate(values)
    ]


def _unpacked(archive: Path) -> Path:
    target = archive.with_suffix("")

    def unpack(path: Path) -> None:
        with gzip.open(archive) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)

    if not _is_of(target, archive):
        try:
            write_atomic(target, unpack)
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{archive} is not a whole gzip file ({error}); fetch it again.") from error
    return target


def _is_of(target: Path, archive: Path) -> bool:
    """Whether a file holds what is packed in an archive: by the checksum and the size at the end of a gzip file."""
    with archive.open("rb") as packed:
        packed.seek(-min(8, archive.stat().st_size), os.SEEK_END)
        told = packed.read()
    if not target.exists() or told[4:] != (target.stat().st_size & 0xFFFFFFFF).to_bytes(4, "little"):
        return False
    crc = 0
    with target.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return told[:4] == crc.to_bytes(4, "little")


def _image(path: Path, place: int) -> np.ndarray:
    return _dataset(path, "x", os.getpid())[place]


# One handle a process: HDF5's do not survive a fork.
@lru_cache(maxsize=6)
def _dataset(path: Path, name: str, process: int) -> Any:
    try:
        return _h5py().File(path, "r")[name]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is no HDF5 file with '{name}' ({error}); delete it and its archive.") from error


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ValueError("PatchCamelyon is stored as HDF5: pip install h5py, or the extra `data`.") from error
    return h5py
