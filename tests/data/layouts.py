"""Tiny data sets in each layout, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"train800": ("train", 40), "val200": ("val", 10), "test": ("test", 20)}


def write_image(path: Path, number: int, size: tuple[int, int] = (9, 12)) -> None:
    """A picture whose pixels depend on its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_vtab(root: Path, task: str = "eurosat", classes: int = 10, suffix: str = ".png") -> Path:
    """A task in VTAB-1k's layout, 40/10/20 images, classes in turn."""
    folder = root / task
    lists = {}
    for stem, (part, count) in SIZES.items():
        lists[stem] = ""
        for i in range(count):
            name = f"images/{part}/{i:06d}{suffix}"
            write_image(folder / name, 1000 * len(part) + i)
            lists[stem] += f"{name} {i % classes}\n"
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for stem, text in lists.items():
        (folder / f"{stem}.txt").write_text(text)
    return folder


def write_folder(top: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    """One folder a class."""
    for label, name in enumerate(classes):
        for i in range(count):
            write_image(top / name / f"{i}.png", 100 * label + i)
    return top
