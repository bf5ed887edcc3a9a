"""dSprites (Matthey et al., 2017: dSprites, disentanglement testing sprites dataset).

https://github.com/google-deepmind/dsprites-dataset, Apache-2.0. One npz file: `imgs` N x 64 x 64 of 0 and 1, and
`latents_classes` N x 6 (colour, shape, scale, orientation, x, y), every combination once, the last fastest.

    label = floor(attribute / (values / 16)):   x position 32 -> 16, orientation 40 -> 16
"""

from __future__ import annotations

import io
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from vpeft.vtab1k.archives import Archive, Stored
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        "https://github.com/google-deepmind/dsprites-dataset/raw/master/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    ),
)
HOW = "Take the npz file, not the hdf5 one."

_SIDE = 64
_COLUMN = {"dsprites_loc": 4, "dsprites_ori": 3}
_VALUES = {"dsprites_loc": 32, "dsprites_ori": 40}


def label(value: int, task: str) -> int:
    """VTAB's label of an attribute's value: 16 bins."""
    return value * 16 // _VALUES[task]


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of 'train', all there is; the key is the position in the file.

    Raises:
        ValueError: The archive is missing, damaged or in another order.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    classes = _classes(archive)
    _refuse_another_order(classes, archive.path)
    images, start = _pixels(archive.member("imgs.npy"), len(classes))
    return {
        "train": [
            Example(i, label(value, task), partial(_image, images, start + i * _SIDE * _SIDE))
            for i, value in enumerate(classes[:, _COLUMN[task]].tolist())
        ]
    }


def _classes(archive: Archive) -> np.ndarray:
    data = archive.read("latents_classes.npy")
    try:
        classes = np.load(io.BytesIO(data), allow_pickle=False)
        if classes.ndim != 2 or not classes.size or not np.issubdtype(classes.dtype, np.integer):
            raise TypeError(f"it is {classes.dtype} of shape {classes.shape}")
    except Exception as error:  # damaged bytes make NumPy's reader raise anything
        raise ValueError(
            f"{archive.path}: latents_classes is no table of whole numbers ({error}); fetch the archive again."
        ) from error
    return classes


def _refuse_another_order(classes: np.ndarray, path: Path) -> None:
    sizes = tuple((classes.max(0) + 1).tolist())
    # As many first: the combinations of numbers that are not sizes would not fit into memory.
    whole = classes.min() >= 0 and prod(sizes) == len(classes)
    if not whole or not (classes == np.indices(sizes).reshape(len(sizes), -1).T).all():
        raise ValueError(
            f"{path}: latents_classes is not every combination of attributes in order; TFDS's order of the images "
            "follows from their positions."
        )


def _pixels(member: Stored, count: int) -> tuple[Stored, int]:
    # Three gigabytes unpacked, of which a tenth is needed: they are read row by row.
    head = io.BytesIO(member.part(0, min(1024, member.size)).read())
    try:
        np.lib.format.read_magic(head)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    except Exception as error:  # damaged bytes make NumPy's reader raise anything
        raise ValueError(f"{member.archive}: imgs is no array ({error}); fetch the archive again.") from error
    if shape != (count, _SIDE, _SIDE) or fortran or dtype != np.uint8:
        raise ValueError(f"{member.archive}: imgs is {shape} {dtype}, not ({count}, {_SIDE}, {_SIDE}) uint8.")
    return member, head.tell()


def _image(images: Stored, offset: int) -> np.ndarray:
    return np.frombuffer(images.part(offset, _SIDE * _SIDE).read(), np.uint8).reshape(_SIDE, _SIDE) * 255
