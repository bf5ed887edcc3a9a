"""Files with images and texts, as users have them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROUND = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]


def pixels(seed: int, size: tuple[int, int] = (6, 10)) -> bytes:
    data = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(data, "png")
    return data.getvalue()


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(pixels(i))
    return [f"{i}.png" for i in range(count)]


def talks(count: int) -> list[dict[str, Any]]:
    """Every third has no image, and every fifth two rounds; answers differ in length."""
    found = []
    for i in range(count):
        question = "What colour?" if i % 3 == 2 else "<image>\nWhat colour?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red " * (i % 7) + "blue"}]
        if i % 5 == 0:
            turns += [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": f"number {i}"}]
        image = {} if i % 3 == 2 else {"image": f"images/{i}.png"}
        found.append({"id": f"talk{i}", **image, "conversations": turns})
    return found


def write_talks(root: Path, count: int, name: str = "talks.json") -> list[dict[str, Any]]:
    write_images(root / "images", count)
    records = talks(count)
    (root / name).write_text(json.dumps(records))
    return records


def write_shard(path: Path, members: dict[str, bytes], compress: str = "") -> Path:
    mode: Any = f"w:{compress}"
    with tarfile.open(path, mode) as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path
