"""Ours equals mmsegmentation's: against numbers that it made, and against itself where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from numpy.random import RandomState

from tests.golden import golden
from tests.golden.make_segmentation import CHANGES, SEEDS, SIZES, inputs
from vpeft.data.augment import Changes, change, distort, draw_crop, draw_distortion, pad, rescaled
from vpeft.data.masks import ClassTable, _checked
from vpeft.data.opencv import resize, resize_nearest

needs_mmseg = pytest.mark.skipif(find_spec("mmseg") is None, reason="needs mmsegmentation: the extra dense")


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in golden("segmentation_changes").items()}


def test_resized_pixels_are_opencvs(made: dict[str, np.ndarray]) -> None:
    for size in SIZES:
        name = f"resize/{size[0]}x{size[1]}"
        assert np.array_equal(resize(made["image"], size), made[f"{name}/image"])
        assert np.array_equal(resize_nearest(made["mask"], size), made[f"{name}/mask"])
    assert rescaled(made["image"].shape, (200, 37)) == tuple(made["keep_ratio/200x37"])


def test_a_part_of_a_resized_image_is_that_part(made: dict[str, np.ndarray]) -> None:
    whole = resize(made["image"], (96, 128))
    box = (slice(17, 60), slice(90, 128))
    assert np.array_equal(resize(made["image"], (96, 128), box), whole[box])


def test_the_crop_is_where_mmsegmentation_puts_it(made: dict[str, np.ndarray]) -> None:
    boxes = [draw_crop(made["mask"], CHANGES, RandomState(seed)) for seed in range(SEEDS)]
    assert [[y.start, y.stop, x.start, x.stop] for y, x in boxes] == [made[f"crop/{i}"].tolist() for i in range(SEEDS)]


def test_distorted_colours_are_mmsegmentations(made: dict[str, np.ndarray]) -> None:
    for seed in range(SEEDS):
        draws = draw_distortion(RandomState(seed))
        assert np.array_equal(distort(made["image"], draws), made[f"distort/{seed}"]), draws


def test_all_changes_together_are_mmsegmentations(made: dict[str, np.ndarray]) -> None:
    for seed in range(SEEDS):
        image, mask = change(made["image"], made["mask"], CHANGES, RandomState(seed))
        assert np.array_equal(mask, made[f"change/{seed}/mask"])
        assert np.array_equal(image, made[f"change/{seed}/image"])


def test_the_label_zero_is_reduced_as_mmsegmentation_does(made: dict[str, np.ndarray], tmp_path) -> None:
    table = ClassTable.of([f"class {i}" for i in range(150)])
    assert np.array_equal(_checked(made["on_disk"], tmp_path, table, 1), made["reduced"])


def test_the_golden_inputs_are_those_that_the_script_makes(made: dict[str, np.ndarray]) -> None:
    assert all(np.array_equal(made[name], array) for name, array in inputs().items())


@needs_mmseg
@pytest.mark.parametrize("crop", [(32, 32), (64, 96)])
def test_the_installed_mmsegmentation_makes_the_same_pixels(crop: tuple[int, int]) -> None:
    from vpeft.data import mmseg_transforms

    found = inputs()
    changes = Changes(crop=crop, scale=(256, 64), ratio=(1.5, 2.0))
    before = np.random.get_state()[1].tolist()
    for seed in range(100, 130):
        ours = change(found["image"], found["mask"], changes, RandomState(seed))
        theirs = mmseg_transforms.change(found["image"], found["mask"], changes, RandomState(seed))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.skipif(find_spec("mmseg") is not None, reason="the extra dense is installed")
def test_without_mmsegmentation_its_transforms_name_the_command() -> None:
    from vpeft.data import mmseg_transforms

    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\.\[dense\]"):
        mmseg_transforms.load()


def test_a_crop_with_one_class_or_none_is_allowed() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    for ids in (0, 255):
        mask = np.full((40, 40), ids, np.uint8)
        changed = change(image, mask, Changes(crop=(16, 16), scale=(160, 40)), RandomState(0))
        assert changed[1].shape == (16, 16)
        assert set(np.unique(changed[1])) == {ids}


def test_what_is_padded_is_the_mean_and_ignored() -> None:
    changes = Changes(crop=(3, 4), scale=(4, 1), pixel=(9, 8, 7), ignore=65535)
    image, mask = pad(np.ones((2, 3, 3), np.uint8), np.ones((2, 3), np.uint16), changes)
    assert mask.tolist() == [[1, 1, 1, 65535], [1, 1, 1, 65535], [65535] * 4]
    assert image[2, 0].tolist() == [9, 8, 7]
    assert image[:2, :3].min() == image[:2, :3].max() == 1


def test_nothing_is_mirrored_or_distorted_where_that_is_off() -> None:
    image = RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16) % 4
    still = Changes(crop=(16, 16), scale=(64, 16), ratio=(1, 1), flip=0, distort=False)
    changed = change(image, mask, still, RandomState(3))
    assert np.array_equal(changed[0], image)
    assert np.array_equal(changed[1], mask)
