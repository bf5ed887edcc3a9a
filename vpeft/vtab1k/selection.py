"""The images of a task's three lists, whatever they come from, and how each is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vpeft.data.tables import VTAB

Loaded = tuple[Image.Image | np.ndarray, int, str | int | None]


@dataclass(frozen=True)
class Chosen:
    """One image of a task.

    Args:
        part: train, val or test.
        number: Its place in the list of that part.
        split: TFDS's split that it is in.
        position: Its place there, in TFDS's order.
        load: Gives the image, VTAB's label, and TFDS's key or the name that TFDS stores, where there is one.
    """

    part: str
    number: int
    split: str
    position: int
    load: Callable[[], Loaded]

    @property
    def file(self) -> str:
        """Its file below the task's folder."""
        return f"images/{self.part}/{self.number:06d}.png"


@dataclass(frozen=True)
class Selection:
    """All images of a task.

    Args:
        task: The task.
        images: In the order in which their source is best read.
        facts: Where they come from, JSON-able, for the manifest.
    """

    task: str
    images: list[Chosen]
    facts: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """A hash of where the images come from and which they are: what an interrupted export may go on with."""
        listed = [[one.file, one.split, one.position] for one in self.images]
        return hashlib.sha256(json.dumps([self.task, self.facts, listed]).encode()).hexdigest()


def check_label(task: str, label: int, what: str) -> None:
    """Refuse a label that the task does not have.

    Raises:
        ValueError: It is out of range.
    """
    classes = len(VTAB[task].classes)
    if not 0 <= label < classes:
        raise ValueError(
            f"{task}: {what} has the label {label}; the task has {classes} classes, so labels 0 to {classes - 1}. "
            "This is another version of the data set; fetch the published one."
        )


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """Grey or RGB, as the PNG stores it and as TFDS decodes it: transparency is dropped, nothing is blended."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    return image if image.mode == "L" else image.convert("RGB")


def pixel_hash(image: Image.Image) -> str:
    """sha256 of the RGB bytes, row by row."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
