"""Small segmentation data sets, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = "sky #0000ff\nroad #808080\ntree #00ff00\n"


def write_pair(images: Path, masks: Path, name: str, number: int, size: tuple[int, int] = (24, 32)) -> None:
    """A noise image and a mask of blocks of ids 0, 1, 2 and 255; both depend on the number."""
    random = np.random.RandomState(number)
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(images / f"{name}.png")
    blocks = random.choice([0, 1, 2, 255], (size[0] // 4, size[1] // 4)).astype(np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((4, 4), np.uint8))).save(masks / f"{name}.png")


def write_folder(
    root: Path, parts: dict[str, int] | None = None, sizes: tuple[tuple[int, int], ...] = ((24, 32),)
) -> Path:
    """images/PART, masks/PART and classes.txt; without parts, twenty pairs in images/ and masks/ themselves."""
    for part, count in (parts or {"": 20}).items():
        for i in range(count):
            size = sizes[i % len(sizes)]
            write_pair(root / "images" / part, root / "masks" / part, f"{i:03d}", 100 * len(part) + i, size)
    (root / "classes.txt").write_text(CLASSES)
    return root
