"""SVHN, cropped digits (Netzer et al., 2011: Reading digits in natural images with unsupervised feature learning).

http://ufldl.stanford.edu/housenumbers/, for non-commercial use only. MATLAB files: X is 32 x 32 x 3 x N, y is
N x 1 with 10 for the digit 0.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from vpeft.data.matlab import Load, apart
from vpeft.vtab1k.source import Example, Needed, locate

_URL = "http://ufldl.stanford.edu/housenumbers/"
ARCHIVES = (
    Needed(
        "train_32x32.mat",
        f"{_URL}train_32x32.mat",
        sha256="435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        size=182_040_794,
    ),
    Needed(
        "test_32x32.mat",
        f"{_URL}test_32x32.mat",
        sha256="cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        size=64_275_384,
    ),
)
HOW = "Take format 2, the cropped digits; the file of extra images is not needed."


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of 'train' and 'test'; the key is the position in the file.

    Raises:
        ValueError: A file is missing, damaged or another one.
    """
    paths = [locate(folder, needed, HOW) for needed in ARCHIVES]
    with apart("fetch it again") as load:
        return {split: _read(path, load) for split, path in zip(("train", "test"), paths, strict=True)}


def _read(path: Path, load: Load) -> list[Example]:
    found = load(path, ["X", "y"])
    try:
        images, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # damaged bytes make arrays of any kind
        raise ValueError(f"{path} has no arrays X and y ({error!r:.400}); fetch it again.") from error
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: X holds {images.dtype}, and bytes are expected; fetch it again.")
    if images.shape != (32, 32, 3, len(labels)) or not ((labels >= 1) & (labels <= 10)).all():
        raise ValueError(f"{path}: X is {images.shape}, not 32 x 32 x 3 x {len(labels)}, or y is not within 1 to 10.")
    return [Example(i, label % 10, partial(_image, images, i)) for i, label in enumerate(labels.tolist())]


def _image(images: np.ndarray, i: int) -> np.ndarray:
    return images[..., i]
