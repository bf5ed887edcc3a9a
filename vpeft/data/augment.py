"""Changes of a training image and its mask: mmsegmentation's for ADE20K, in its order and with its random draws.

Every draw is taken from a `RandomState` as mmsegmentation takes it from NumPy's global one, so that both make the
same pixels from the same state.

    H W  size of an image
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from vpeft.data.opencv import Box, hsv_to_rgb, resize, resize_nearest, rgb_to_hsv

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Changes:
    """What is done to a training image; the fields are those of `SegmentationDataConfig`, resolved.

    Args:
        crop: (H, W).
        scale: Bounds of the longer and the shorter side.
        ratio: Range of the random factor on both.
        ignore: Id of pixels without a class.
        pixel: What the image is padded with; mmsegmentation pads normalised images with zeros, which is the mean.
    """

    crop: tuple[int, int]
    scale: tuple[int, int]
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True
    ignore: int = 255
    pixel: tuple[int, int, int] = (124, 116, 104)


@dataclass(frozen=True)
class Distortion:
    """Draws of PhotoMetricDistortion; None is a step left out."""

    brightness: float | None
    contrast: float | None
    contrast_first: bool
    saturation: float | None
    hue: int | None


def change(image: np.ndarray, mask: np.ndarray, changes: Changes, random: RandomState) -> Pair:
    """Scale, crop, mirror, distort and pad: uint8 [H, W, 3] and [H, W] to the crop's size."""
    low, high = changes.ratio
    factor = random.random_sample() * (high - low) + low
    scale = int(changes.scale[0] * factor), int(changes.scale[1] * factor)
    size = rescaled(mask.shape, scale)
    mask = resize_nearest(mask, size)
    box = draw_crop(mask, changes, random)
    # Only what the crop keeps is computed: the same pixels, at a fraction of the time.
    image, mask = resize(image, size, box), mask[box]
    if random.choice(2, p=[changes.flip, 1 - changes.flip]) == 0:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if changes.distort:
        image = distort(image, draw_distortion(random))
    return pad(image, mask, changes)


def rescaled(shape: tuple[int, ...], scale: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image [H, W, ...] as large as (longer, shorter) side allow, its aspect kept."""
    height, width = shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def draw_crop(mask: np.ndarray, changes: Changes, random: RandomState) -> Box:
    """A place of the crop in which no class has too large a share; after ten tries, any."""
    box = _place(mask.shape, changes.crop, random)
    if changes.cat_max_ratio < 1:
        for _ in range(10):
            ids, counts = np.unique(mask[box], return_counts=True)
            counts = counts[ids != changes.ignore]
            if len(counts) > 1 and counts.max() / counts.sum() < changes.cat_max_ratio:
                break
            box = _place(mask.shape, changes.crop, random)
    return box


def draw_distortion(random: RandomState) -> Distortion:
    """Each step for half of the images; contrast before or after the colours."""

    def maybe(draw: Callable[[], float]) -> float | None:
        return draw() if random.randint(2) else None

    brightness = maybe(lambda: random.uniform(-32, 32))
    first = bool(random.randint(2))
    contrast = maybe(lambda: random.uniform(0.5, 1.5)) if first else None
    saturation = maybe(lambda: random.uniform(0.5, 1.5))
    hue = maybe(lambda: random.randint(-18, 18))
    if not first:
        contrast = maybe(lambda: random.uniform(0.5, 1.5))
    return Distortion(brightness, contrast, first, saturation, None if hue is None else int(hue))


def distort(image: np.ndarray, draws: Distortion) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of uint8 [H, W, 3]."""
    if draws.brightness is not None:
        image = _linear(1, draws.brightness)[image]
    if draws.contrast is not None and draws.contrast_first:
        image = _linear(draws.contrast, 0)[image]
    if draws.saturation is not None:
        hsv = rgb_to_hsv(image)
        hsv[..., 1] = _linear(draws.saturation, 0)[hsv[..., 1]]
        image = hsv_to_rgb(hsv)
    if draws.hue is not None:
        hsv = rgb_to_hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(int) + draws.hue) % 180
        image = hsv_to_rgb(hsv)
    if draws.contrast is not None and not draws.contrast_first:
        image = _linear(draws.contrast, 0)[image]
    return image


def pad(image: np.ndarray, mask: np.ndarray, changes: Changes) -> Pair:
    """Fill up to the crop's size, below and to the right; what is added is ignored."""
    if image.shape[:2] == changes.crop:
        return image, mask
    filled = np.full((*changes.crop, 3), changes.pixel, np.uint8)
    ignored = np.full(changes.crop, changes.ignore, mask.dtype)
    height, width = mask.shape
    filled[:height, :width], ignored[:height, :width] = image, mask
    return filled, ignored


def _place(shape: tuple[int, ...], crop: tuple[int, int], random: RandomState) -> Box:
    top, left = (random.randint(0, max(there - wanted, 0) + 1) for there, wanted in zip(shape, crop, strict=True))
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def _linear(gain: float, offset: float) -> np.ndarray:
    # What becomes of each of the 256 levels: the arithmetic is mmsegmentation's, once a level and not once a pixel.
    return np.clip(np.arange(256).astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)
