"""CIFAR-100 (Krizhevsky, 2009: Learning multiple layers of features from tiny images).

https://www.cs.toronto.edu/~kriz/cifar.html; no licence is stated. The binary version: a record is the coarse label,
the fine label and 32 x 32 bytes each of red, green and blue.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        size=168_513_733,
    ),
)
HOW = "Take the binary version, not the Python or Matlab one."

_RECORD = 2 + 3 * 32 * 32


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of 'train' and 'test'; the label is the fine one, the key the position in the file.

    Raises:
        ValueError: The archive is missing, damaged or another one.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    return {split: _read(archive, f"cifar-100-binary/{split}.bin") for split in ("train", "test")}


def _read(archive: Archive, name: str) -> list[Example]:
    data = archive.read(name)
    if len(data) % _RECORD:
        raise ValueError(f"'{name}' in {archive.path} has {len(data):,} bytes, which is no multiple of {_RECORD}.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    return [Example(i, label, partial(_image, rows[i])) for i, label in enumerate(rows[:, 1].tolist())]


def _image(row: np.ndarray) -> np.ndarray:
    return row[2:].reshape(3, 32, 32).transpose(1, 2, 0)
