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
from vpeft.vtab1k.reference import CHOICE, names_hash, published_name
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


# The keys of these three can be counted up, so the published choice is computed without their images.
COUNTED = {
    "cifar100": (50_000, lambda i: i, "train", 45_000, 50_000, lambda i: i),
    "clevr_count": (70_000, "CLEVR_train_{:06d}.png".format, "train", 63_000, 70_000, "CLEVR_train_{:06d}.png".format),
    "patch_camelyon": (262_144, "train_{}".format, "validation", 0, 32_768, "valid_{}".format),
}


@pytest.mark.parametrize("task", COUNTED)
def test_the_thousand_images_are_those_of_the_published_index(task: str) -> None:
    size, key, val_split, start, val_size, val_key = COUNTED[task]
    train = sorted(map(key, range(size)), key=lambda one: place(one, "train"))[:800]
    val = sorted(map(val_key, range(val_size)), key=lambda one: place(one, val_split))[start : start + 200]
    hashes = tuple(names_hash(published_name(task, one) for one in part) for part in (train, val))
    assert hashes == CHOICE[task]


def test_cifar_begins_as_in_the_output_that_tfds_documents() -> None:
    # tensorflow.org/datasets/catalog/cifar10, whose keys are those of CIFAR-100.
    first = sorted(range(50_000), key=lambda i: place(i, "train"))[:12]
    assert first == [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598, 12970, 4223]


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
