"""Resizing, blurring and HSV as OpenCV computes them on bytes, in NumPy, so that images equal those made with it.

H W size of an image, h w size that is wanted
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

Box = tuple[slice, slice]
ALL: Box = (slice(None), slice(None))


def resize(image: np.ndarray, size: tuple[int, int], box: Box = ALL) -> np.ndarray:
    """Bilinear, without antialiasing (INTER_LINEAR): uint8 [H, W, 3] to [h, w, 3].

    Weights are in 2,048ths, as in OpenCV's integer arithmetic.

    Args:
        size: (h, w).
        box: Rows and columns of the result that are computed.
    """
    return _bilinear(image, size, (size[0] / image.shape[0], size[1] / image.shape[1]), box)


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """Bilinear by a factor (fx = fy = factor): the positions follow the factor and not the rounded size.

    Differs: at a factor of one half the last row of an odd height may be one level off, the last column likewise.
    """
    size = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
    # OpenCV copies what would keep its size, though the factor is not one.
    return image.copy() if size == image.shape[:2] else _bilinear(image, size, (factor, factor), ALL)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur over 6 sigma + 1 pixels, mirrored at the edge (GaussianBlur): uint8 [H, W, 3] to the same.

    Weights are in 256ths that sum to 256; what rounding leaves is passed on towards the middle.
    """
    half = (round(6 * sigma + 1) | 1) // 2
    exact = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    exact *= 256 / exact.sum()
    side, left = [], 0.0
    for weight in exact[:half]:
        side.append(round(weight + left))
        left += weight - side[-1]
    weights = [*side, 256 - 2 * sum(side), *reversed(side)]
    across = correlate1d(image, weights, axis=1, output=np.int32, mode="mirror")
    down = correlate1d(across, weights, axis=0, output=np.int32, mode="mirror")
    return np.right_shift(down + (1 << 15), 16).astype(np.uint8)


def _bilinear(image: np.ndarray, size: tuple[int, int], factors: tuple[float, float], box: Box) -> np.ndarray:
    height, width = image.shape[:2]
    up, top, bottom = _taps(size[0], factors[0], box[0])
    left, west, east = _taps(size[1], factors[1], box[1])
    # Only across does OpenCV drop the weight of what lies outside; down it counts the edge twice.
    outside = (left < 0) | (left >= width - 1)
    west, east = np.where(outside, _ONE, west), np.where(outside, 0, east)
    left, right = left.clip(0, width - 1), (left + 1).clip(0, width - 1)
    up, down = up.clip(0, height - 1), (up + 1).clip(0, height - 1)
    first = up[0]
    rows = image[first : down[-1] + 1].astype(np.int32)
    rows = (rows[:, left] * west[:, None] + rows[:, right] * east[:, None]) >> 4
    mixed = ((rows[up - first] * top[:, None, None]) >> 16) + ((rows[down - first] * bottom[:, None, None]) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel at floor(position * scale) (INTER_NEAREST): [H, W] to [h, w]."""
    rows, columns = (
        np.minimum((np.arange(wanted) * (1 / (wanted / there))).astype(np.int64), there - 1)
        for there, wanted in zip(mask.shape, size, strict=True)
    )
    return mask[rows[:, None], columns]


def rgb_to_hsv(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to hue 0..179, saturation and value (RGB2HSV)."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _PER_VALUE[value] + 2048) >> 12
    sector = np.where(value == red, green - blue, blue - red + 2 * spread)
    sector = np.where((value == red) | (value == green), sector, red - green + 4 * spread)
    hue = (sector * _PER_SPREAD[spread] + 2048) >> 12
    return np.stack([hue + 180 * (hue < 0), saturation, value], -1).astype(np.uint8)


def hsv_to_rgb(image: np.ndarray) -> np.ndarray:
    """The inverse (HSV2RGB), cut to whole numbers where OpenCV's vector code does so.

    Differs: in the last W mod 32 pixels of a row OpenCV runs scalar code that rounds: one level more at times.
    """
    one, up = np.float32(1), np.float64
    hue, saturation, value = (image[..., i].astype(np.float32) * unit for i, unit in enumerate(_UNITS))
    sector = np.trunc(hue)
    part, sector = hue - sector, sector.astype(np.int32) % 6
    low = value * (one - saturation)
    # In double precision and back: the fused multiply-add that OpenCV compiles to rounds once.
    falling = value * (one - saturation.astype(up) * part).astype(np.float32)
    rising = value * (one - saturation.astype(up) * (one - part)).astype(np.float32)
    red = np.choose(sector, [value, falling, low, low, rising, value])
    green = np.choose(sector, [rising, value, value, falling, low, low])
    blue = np.choose(sector, [low, low, rising, value, value, falling])
    return (np.stack([red, green, blue], -1) * np.float32(255)).astype(np.uint8)


def _taps(wanted: int, factor: float, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First of the two pixels that each wanted one is mixed of, and the weights of both."""
    at = ((np.arange(wanted)[part] + 0.5) * (1 / factor) - 0.5).astype(np.float32)
    first = np.floor(at)
    share = at - first
    one, unit = np.float32(1), np.float32(_ONE)
    return (
        first.astype(np.int64),
        np.rint((one - share) * unit).astype(np.int32),
        np.rint(share * unit).astype(np.int32),
    )


_ONE = 2048
_UNITS = np.array([6 / 180, 1 / 255, 1 / 255], np.float32)
_LEVELS = np.maximum(np.arange(256), 1)
_PER_VALUE = np.where(np.arange(256) > 0, np.rint((255 << 12) / _LEVELS), 0).astype(np.int32)
_PER_SPREAD = np.where(np.arange(256) > 0, np.rint((180 << 12) / (6 * _LEVELS)), 0).astype(np.int32)
