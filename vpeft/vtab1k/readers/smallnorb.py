"""Small NORB (LeCun, Huang and Bottou, CVPR 2004: Learning methods for generic object recognition).

https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/, for research only. Gzipped binary matrices: a magic number, the
rank, at least three sizes (all 32-bit, little-endian), then the numbers. `dat` is N x 2 x 96 x 96 bytes, of which
VTAB takes the first camera; `info` is N x 4: instance, elevation, azimuth (0, 2, ..., 34), lighting.
"""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from vpeft.vtab1k.archives import Stored
from vpeft.vtab1k.source import Example, Needed, locate

_URL = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"
_STEM = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
_KNOWN = {
    ("train", "dat"): ("5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873", 131_896_188),
    ("train", "info"): ("de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32", 71_052),
    ("test", "dat"): ("cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474", 130_799_817),
    ("test", "info"): ("16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2", 10_428),
}


def _needed(split: str, kind: str) -> Needed:
    name = f"{_STEM[split]}-{kind}.mat.gz"
    sha256, size = _KNOWN[split, kind]
    return Needed(name, _URL + name, sha256=sha256, size=size)


ARCHIVES = tuple(_needed(split, kind) for split, kind in _KNOWN)
HOW = "The files of categories (cat) are not needed."

_MAGIC = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of 'train' and 'test'; the key is the position in the file.

    Raises:
        ValueError: A file is missing, damaged or another one.
    """
    return {split: _read(folder, split, task) for split in _STEM}


def _read(folder: Path, split: str, task: str) -> list[Example]:
    dat, info = (_stream(locate(folder, _needed(split, kind), HOW)) for kind in ("dat", "info"))
    shape, dtype, start = _head(dat)
    info_shape, info_dtype, info_start = _head(info)
    if shape[1:] != (2, 96, 96) or dtype != np.uint8 or info_shape != (shape[0], 4):
        raise ValueError(f"{dat.archive}: the matrix is {shape} {dtype} and info {info_shape}, not (N, 2, 96, 96).")
    attributes = np.frombuffer(
        info.part(info_start, prod(info_shape) * info_dtype.itemsize).read(), info_dtype
    ).reshape(info_shape)
    labels = attributes[:, 2] // 2 if task == "smallnorb_azi" else attributes[:, 1]
    return [Example(i, label, partial(_image, dat, start + 2 * i * 96 * 96)) for i, label in enumerate(labels.tolist())]


def _stream(path: Path) -> Stored:
    with path.open("rb") as file:
        kind = "gzip" if file.read(2) == b"\x1f\x8b" else "file"
    return Stored(path, kind, path.name, 0, 0)


def _head(file: Stored) -> tuple[tuple[int, ...], np.dtype, int]:
    magic, rank = np.frombuffer(file.part(0, 8).read(), "<i4").tolist()
    if magic not in _MAGIC or not 1 <= rank <= 8:
        raise ValueError(f"{file.archive} is not a matrix of NORB (its magic number is {magic:#x}); fetch it again.")
    shape = tuple(np.frombuffer(file.part(8, 4 * rank).read(), "<i4").tolist())
    return shape, _MAGIC[magic], 8 + 4 * max(3, rank)


def _image(dat: Stored, offset: int) -> np.ndarray:
    return np.frombuffer(dat.part(offset, 96 * 96).read(), np.uint8).reshape(96, 96)
