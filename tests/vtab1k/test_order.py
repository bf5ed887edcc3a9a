"""The order of the readers' examples is the one that TFDS's own builders gave the same archives.

tests/golden/tfds_order.json was made by tests/golden/make_tfds.py with tensorflow-datasets 4.9.10.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.vtab1k import fakes
from vpeft.vtab1k.order import place, stored_order
from vpeft.vtab1k.readers import READERS, reader
from vpeft.vtab1k.source import Example

GOLDEN = Path(__file__).parents[1] / "golden" / "tfds_order.json"
TASKS = ("cifar100", "svhn", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele", "dmlab")
COLUMN = {"dsprites_ori": 1, "smallnorb_ele": 1}


def mark(example: Example) -> list[float]:
    """The image's mean, as the golden has it."""
    image = np.asarray(example.image())
    grey = image[..., None] if image.ndim == 2 else image
    return (grey.reshape(-1, grey.shape[-1]).mean(0)).tolist()


@pytest.mark.parametrize("task", TASKS)
def test_examples_in_stored_order_are_those_of_tfds(task: str, tmp_path: Path) -> None:
    name = READERS[task]
    getattr(fakes, name)(tmp_path, fakes.SIZES[name])
    golden = json.loads(GOLDEN.read_text())[name]
    found = reader(task).read(tmp_path, task)
    assert set(found) == set(golden)
    for split, rows in golden.items():
        order = stored_order(found[split], split)
        assert len(order) == len(rows)
        for position, row in zip(order, rows, strict=True):
            example = found[split][position]
            *labels, mean = row
            value = labels[COLUMN.get(task, 0)]
            binned = {"dsprites_loc": value // 2, "dsprites_ori": int(value // 2.5)}.get(task, value)
            assert example.label == binned
            scale = 255 if name == "dsprites" else 1
            # TensorFlow decodes DMLab's JPEG with its own method.
            assert mark(example) == pytest.approx(
                [scale * v for v in mean], abs=2 if name == "dmlab" else 0.006 * scale
            )


def test_the_split_salts_the_order() -> None:
    examples = [Example(i, 0, lambda: np.zeros((1, 1, 3), np.uint8)) for i in range(50)]
    assert stored_order(examples, "train") != stored_order(examples, "test")


def test_a_number_and_its_digits_are_one_key_and_backslashes_are_slashes() -> None:
    assert place(7, "train") == place("7", "train")
    assert place("a\\b", "train") == place("a/b", "train")


def test_a_key_that_occurs_twice_is_refused() -> None:
    examples = [Example("a/1.jpg", 0, lambda: np.zeros((1, 1, 3), np.uint8)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"Two examples of train have the key 'a/1.jpg'"):
        stored_order(examples, "train")
