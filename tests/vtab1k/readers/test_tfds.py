"""The readers give what TFDS's own builders made of the same archives: keys, order, labels, sizes and pixels.

tests/golden/tfds_files.json was made by tests/golden/make_tfds_files.py with tensorflow-datasets 4.9.10, and the labels
of CLEVR and KITTI by google-research/task_adaptation d7630d3.
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


@pytest.mark.parametrize("task", TASKS)
def test_images_are_those_of_tfds(task: str, found: dict[str, list[Example]]) -> None:
    for split, expected in golden()[task].items():
        for example, row in zip(found[split][:8], expected["rows"], strict=False):
            image = pixels(example)
            assert list(image.shape) == [*row[2:4], 3]
            # TensorFlow decodes JPEG with a faster and less exact transform.
            assert image.mean((0, 1)).tolist() == pytest.approx(row[4], abs=2)


@pytest.mark.parametrize("task", ["sun397", "diabetic_retinopathy"])
def test_images_that_tfds_processes_are_equal_to_the_last_bit(task: str, found: dict[str, list[Example]]) -> None:
    for split, expected in golden()[task].items():
        for example, row in zip(found[split][:8], expected["rows"], strict=False):
            assert hashlib.sha256(pixels(example).tobytes()).hexdigest() == row[5]
