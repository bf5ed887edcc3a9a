"""Features of a frozen vision tower, made once for every image and kept in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm.data.images import Pictures
from vpeft.data.cache import memory_limit
from vpeft.tasks.learning import normalise
from vpeft.tuned import Tuned

_BATCH = 32


class Features:
    """What the tower makes of every picture of a data set.

    They are made at the first call, on the device that the tower is on, and kept on the CPU. A tower that learns, or
    images that change from epoch to epoch, would need other features every time.

    Args:
        vision: Its parameters are all frozen.
        mean, std: [1, 3, 1, 1], of its images.
    """

    def __init__(self, vision: Tuned, mean: Tensor, std: Tensor) -> None:
        self._vision, self._mean, self._std = vision, mean, std
        self._kept: Tensor | None = None

    def make(self, pictures: Pictures) -> None:
        """Run the tower once over all pictures; nothing if that has been done.

        Raises:
            ValueError: There are no pictures, or their features do not fit into memory.
        """
        if self._kept is not None:
            return
        if not len(pictures):
            raise ValueError("cache_features keeps the features of images, and these samples have none; leave it out.")
        device = next(self._vision.parameters()).device
        mean, std = self._mean.to(device), self._std.to(device)
        for start in range(0, len(pictures), _BATCH):
            index = torch.arange(start, min(start + _BATCH, len(pictures)))
            with torch.no_grad():
                part = self._vision(normalise(pictures.take(index).to(device), mean, std)).cpu()
            if self._kept is None:
                self._kept = _room(len(pictures), part)
            self._kept[start : start + len(part)] = part

    def __call__(self, index: Tensor) -> Tensor:
        """Features [I, N, dv] of the pictures at these positions [I], on their device."""
        assert self._kept is not None, "make() comes first"
        return self._kept[index.cpu()].to(index.device)


def _room(count: int, like: Tensor) -> Tensor:
    size = count * like[0].numel() * like.element_size()
    if size > memory_limit():
        raise ValueError(
            f"The features of {count:,} images take {size / 2**30:.1f} GiB, more than there is memory for. Set "
            "cache_features to false."
        )
    return like.new_empty((count, *like.shape[1:]))
