"""Changes of training images by mmsegmentation's own transforms, which come with the `dense` extra."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.random import RandomState

from vpeft.data.augment import Changes, Pair, pad


def change(image: np.ndarray, mask: np.ndarray, changes: Changes, random: RandomState) -> Pair:
    """As `augment.change`, by RandomResize, RandomCrop, RandomFlip and PhotoMetricDistortion.

    Differs: OpenCV's scalar code for the last W mod 32 pixels of a row rounds colours where `augment.change` cuts.

    Raises:
        ModuleNotFoundError: The `dense` extra is missing; says what to run.
    """
    results: dict[str, Any] | None = {
        "img": np.ascontiguousarray(image[..., ::-1]),  # mmcv's images are BGR
        "gt_seg_map": mask,
        "seg_fields": ["gt_seg_map"],
    }
    with _as_global(random):
        for transform in load(changes):
            results = transform(results)
            assert results is not None, "none of these transforms drops an image"
    return pad(results["img"][..., ::-1], results["gt_seg_map"], changes)


@functools.cache
def load(changes: Changes | None = None) -> list[Callable[[Any], dict[str, Any] | None]]:
    """mmsegmentation's transforms for these changes; without any, see whether they can be imported.

    Raises:
        ModuleNotFoundError: The `dense` extra is missing; says what to run.
    """
    from vpeft.dense.mmseg import need, register

    register()
    mmcv, mmseg = need("mmcv.transforms"), need("mmseg.datasets.transforms")
    if changes is None:
        return []
    crop = mmseg.RandomCrop(changes.crop, changes.cat_max_ratio, changes.ignore)
    scaled = mmcv.RandomResize(changes.scale, changes.ratio, keep_ratio=True)
    mirrored = mmcv.RandomFlip(float(changes.flip))
    return [scaled, crop, mirrored, *([mmseg.PhotoMetricDistortion()] if changes.distort else [])]


@contextmanager
def _as_global(random: RandomState) -> Iterator[None]:
    # mmsegmentation draws from NumPy's global generator; whoever else does finds it as it was.
    before = np.random.get_state()
    np.random.set_state(random.get_state())
    try:
        yield
    finally:
        np.random.set_state(before)
