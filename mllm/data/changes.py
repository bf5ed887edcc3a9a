"""Random changes of training images: a crop of random size and place, and half of them mirrored, as in BLIP-2.

Everything random follows from the seed, the epoch and the sample, so that batches are the same for any number of
workers and wherever a run is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from mllm.data.images import Look
from mllm.data_schema import DataConfig
from vpeft.data.images import as_tensor, resized

# A stream of random numbers beside those of vpeft.data.loader and mllm.data.order.
_CROP = 4
_TRIES = 10
_RATIO = (3 / 4, 4 / 3)  # of width to height, torchvision's own


class Draws(Protocol):
    """What is asked of a generator of random numbers; NumPy's is one."""

    def uniform(self, low: float, high: float) -> float: ...

    def integers(self, low: int, high: int) -> int: ...


@dataclass(frozen=True)
class CropFlip:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Args:
        look: Size of what comes out, and Pillow's filter.
        seed: Decides everything random, with the epoch and the sample.
        scale: Least and largest share of the image's area; .5 and 1 in LAVIS.
    """

    look: Look
    seed: int
    scale: tuple[float, float]

    def at(self, *place: int) -> Callable[[Image.Image], Tensor]:
        """The change of one image: epoch, sample, and which of its images; other numbers are another crop."""
        return partial(self, place=place)

    def __call__(self, image: Image.Image, place: Sequence[int]) -> Tensor:
        """uint8 [3, H, W] of an RGB image at the size of its file."""
        random = np.random.default_rng([self.seed, _CROP, *place])
        left, top, width, height = draw_crop(image.size, self.scale, random)
        crop = image.crop((left, top, left + width, top + height))
        small = resized(crop, self.look.size, "squash", self.look.interpolation)
        return as_tensor(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.uniform(0, 1) < 0.5 else small)


def changes_of(config: DataConfig, look: Look, seed: int) -> CropFlip | None:
    """What a configuration does to training images."""
    return None if config.augment == "none" else CropFlip(look, seed, (config.crop_scale[0], config.crop_scale[1]))


def draw_crop(size: tuple[int, int], scale: tuple[float, float], random: Draws) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of an image (W, H); its middle where ten draws do not fit into it."""
    across, down = size
    for _ in range(_TRIES):
        area = across * down * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= across and 0 < height <= down:
            top = int(random.integers(0, down - height + 1))
            return int(random.integers(0, across - width + 1)), top, width, height
    width = min(across, round(down * _RATIO[1]))
    height = min(down, round(across / _RATIO[0]))
    return (across - width) // 2, (down - height) // 2, width, height
