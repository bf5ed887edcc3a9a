"""KITTI, distance of the nearest vehicle in a street scene (Geiger et al., CVPR 2012).

https://www.cvlibs.net/datasets/kitti/eval_object.php; CC BY-NC-SA 3.0.

As TFDS's kitti 3.2.0 and 3.3.0 read it: the key is the file name, such as `000016.png`. Only the 7,481 images with
labels are used; `mapping/` of the development kit says from which drive each is, and a tenth of the drives each, drawn
by NumPy's generator with seed 123, makes test and validation, so that no drive is in two splits. VTAB's label
(task_adaptation, data/kitti.py), with z the smallest depth of a Car, Van or Truck in metres as a float32:

    0  z <= 8      1  8 < z <= 20      2  20 < z <= 999      3  no vehicle
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from vpeft.data.tables import VTAB
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples, lines, text
from vpeft.vtab1k.source import Example, Needed, locate

_URL = "https://s3.eu-central-1.amazonaws.com/avg-kitti"
ARCHIVES = (
    Needed(
        "data_object_image_2.zip",
        f"{_URL}/data_object_image_2.zip",
        sha256="351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617",
        size=12_569_945_557,
    ),
    Needed(
        "data_object_label_2.zip",
        f"{_URL}/data_object_label_2.zip",
        sha256="4efc76220d867e1c31bb980bbf8cbc02599f02a9cb4350effa98dbb04aaed880",
        size=5_601_213,
    ),
    Needed(
        "devkit_object.zip",
        f"{_URL}/devkit_object.zip",
        sha256="ce0b76b69c0c5f89690a0d65b7302bbbdb962a0c7e8aba6efc7050d1b04b4cf1",
        size=63_794,
    ),
)
HOW = ""
_VEHICLES = ("Car", "Van", "Truck")
_TYPES = (*_VEHICLES, "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
_BOUNDS = np.array([-100, 8, 20, 999], np.float32)
_NO_VEHICLE = 1000.0


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (6,347), validation (423) and test (711).

    Raises:
        ValueError: An archive is missing, an image or its labels are, or a line is malformed.
    """
    images, labels, devkit = (Archive(locate(folder, needed, HOW)) for needed in ARCHIVES)

    def example(number: int) -> tuple[str, str, int]:
        file = f"{number:06d}"
        name = f"training/label_2/{file}.txt"
        return f"training/image_2/{file}.png", f"{file}.png", _label(labels, name)

    classes = len(VTAB["kitti"].classes)
    return {split: examples(images, map(example, numbers), classes) for split, numbers in _splits(devkit).items()}


def _splits(devkit: Archive) -> dict[str, list[int]]:
    mapping = _text(devkit, "train_mapping.txt").splitlines()
    drives = {place: line.split(" ") for place, line in enumerate(mapping, 1)}
    numbers: dict[str, list[int]] = defaultdict(list)
    for image, place in enumerate(_text(devkit, "train_rand.txt").split(",")):
        line = drives.get(int(place) if re.fullmatch(r"\s*\d{1,9}\s*", place) else 0, ())
        if len(line) != 3:
            raise ValueError(
                f"{devkit.path}: mapping/train_rand.txt has '{place.strip()}' for image {image}; it numbers the lines "
                "of mapping/train_mapping.txt (date, drive, frame) from 1."
            )
        numbers[line[1]].append(image)
    if len(numbers) < 3:
        raise ValueError(f"{devkit.path}: the mapping names {len(numbers)} drives; each of the three splits needs one.")
    draw = np.random.RandomState(123)
    count = max(1, len(numbers) // 10)
    test = set(draw.choice(sorted(numbers), count, replace=False).tolist())
    validation = set(draw.choice(sorted(set(numbers) - test), count, replace=False).tolist())
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for drive, listed in numbers.items():
        splits["test" if drive in test else "validation" if drive in validation else "train"] += listed
    return splits


def _text(devkit: Archive, file: str) -> str:
    return text(devkit.read(f"mapping/{file}"), f"'{file}' in {devkit.path}")


def _label(labels: Archive, name: str) -> int:
    depths = [_NO_VEHICLE]
    for line in lines(labels.read(name), f"'{name}' in {labels.path}"):
        fields = line.split(" ")
        if len(fields) != 15 or fields[0] not in _TYPES:
            raise ValueError(f"{labels.path}: '{name}' has the line '{line}'; expected a type and 14 numbers.")
        if fields[0] in _VEHICLES:
            try:
                depths.append(float(fields[13]))
            except ValueError as error:
                raise ValueError(f"{labels.path}: '{name}' has the line '{line}', whose depth is no number.") from error
    return int((np.float32(min(depths)) > _BOUNDS).sum()) - 1
