"""Diabetic Retinopathy Detection, five grades of it in photographs of the retina (Kaggle and EyePACS, 2015).

https://www.kaggle.com/c/diabetic-retinopathy-detection; under the rules of the competition.

As TFDS's diabetic_retinopathy_detection/btgraham-300 3.0.0 reads it: the key is patient and eye, such as `10_left`;
validation and test are the public and private part of Kaggle's test set. Each image I is processed as by the winner,
B. Graham, with r the radius of the eye, found in the middle row, and G a Gaussian of 10 pixels:

    S = I scaled by 300 / r      J = 4 S - 4 G * S + 128, cut to 0 .. 255
    the disc of radius 270 of J, grey around, cropped to it, stored as JPEG of quality 72
"""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vpeft.data.opencv import blur, rescale
from vpeft.vtab1k.archives import Archive, Stored
from vpeft.vtab1k.readers.members import examples
from vpeft.vtab1k.source import Example, Needed, locate

_KAGGLE = "https://www.kaggle.com/c/diabetic-retinopathy-detection/data"
ARCHIVES = (
    Needed("train", _KAGGLE, manual=True),
    Needed("test", _KAGGLE, manual=True),
    Needed("trainLabels.csv", _KAGGLE, manual=True),
    Needed(
        "retinopathy_solution.csv",
        "https://storage.googleapis.com/kaggle-forum-message-attachments/90528/2877/retinopathy_solution.csv",
        sha256="a6af3d66804e81887da89b9261bcfb7da4f5bacedb070f1b5db83fa879ab60c9",
        size=1_181_257,
    ),
)
HOW = (
    "Log in at Kaggle, accept the competition's rules on the page of its data and download train.zip.001 to .005, "
    "test.zip.001 to .007 and trainLabels.csv.zip. Join and unpack them in the folder of archives: "
    "`7z x train.zip.001 && 7z x test.zip.001 && unzip trainLabels.csv.zip`, so that train/10_left.jpeg, "
    "test/1_left.jpeg and trainLabels.csv lie in it; retinopathy_solution.csv (the grades of test) beside them."
)
_CLASSES = 5
_RADIUS = 300
_KEPT = 270


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (35,126), validation (10,906) and test (42,670).

    Raises:
        ValueError: A file or folder is missing, an image is, or a table has other columns or grades.
    """
    train, test = (Archive(locate(folder, needed, HOW)) for needed in ARCHIVES[:2])
    grades, solution = (locate(folder, needed, HOW) for needed in ARCHIVES[2:])
    return {
        "train": _split(train, grades, None),
        "validation": _split(test, solution, "Public"),
        "test": _split(test, solution, "Private"),
    }


def _split(archive: Archive, table: Path, usage: str | None) -> list[Example]:
    try:
        with table.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if usage is None or row["Usage"] == usage]
        wanted = [(f"{row['image']}.jpeg", row["image"], int(row["level"])) for row in rows]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        columns = "image and level" if usage is None else "image, level and Usage"
        raise ValueError(f"{table} is no table with the columns {columns} ({error!r}).") from error
    found = examples(archive, wanted, _CLASSES)
    return [Example(e.key, e.label, partial(_image, archive.member(f"{e.key}.jpeg"))) for e in found]


def _image(member: Stored) -> Image.Image:
    # OpenCV turns images as their EXIF says.
    pixels = np.asarray(ImageOps.exif_transpose(member.image()).convert("RGB"))
    stored = io.BytesIO()
    Image.fromarray(process(pixels)).save(stored, "JPEG", quality=72)
    return Image.open(stored)


def process(image: np.ndarray) -> np.ndarray:
    """The winner's processing before JPEG: uint8 [H, W, 3] to at most [540, 540, 3]."""
    row = image[len(image) // 2].sum(-1, dtype=np.int64)
    radius = (row > row.mean() / 10).sum() / 2
    if radius < 1:  # a black row: the image is broken
        radius = len(image) / 2
    image = rescale(image, _RADIUS / radius)
    image = (4 * (image.astype(np.int32) - blur(image, _RADIUS / 30)) + 128).clip(0, 255).astype(np.uint8)
    middle = np.array(image.shape[:2]) // 2
    down, across = (np.arange(size) - centre for size, centre in zip(image.shape, middle, strict=False))
    outside = down[:, None] ** 2 + across**2 > _KEPT**2
    image[outside] = 128
    (top, left), (bottom, right) = np.maximum(middle - _KEPT, 0), middle + _KEPT
    return image[top:bottom, left:right]
