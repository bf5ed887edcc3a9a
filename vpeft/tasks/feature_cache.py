"""What a frozen backbone makes of the images, computed once and kept in memory.

N images of a split, B of a batch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from vpeft.data.cache import memory
from vpeft.methods import Cacheable
from vpeft.tuned import Tuned

Kept = tuple[Tensor, ...]


class FeatureCache:
    """Gives the logits of images it has seen before without their pixels.

    Args:
        tuned: With one method, a `Cacheable` one.
        counts: N by split, of the splits to be kept.

    Raises:
        ValueError: they do not fit into half of the memory.
    """

    def __init__(self, tuned: Tuned, counts: Mapping[str, int]) -> None:
        self.tuned, self.counts = tuned, counts
        self.kept: dict[str, Kept] = {}
        self.known = {split: torch.zeros(count, dtype=torch.bool) for split, count in counts.items()}
        with torch.no_grad():
            one = self._frozen(torch.zeros(1, 3, *tuned.backbone.image_size))
        images, each = sum(counts.values()), sum(part.nbytes for part in one)
        if images * each > memory() // 2:
            name = type(tuned.methods[0]).__name__
            raise ValueError(
                f"cache_features needs {images * each:,} bytes of memory: {name} keeps {each:,} of each of {images:,} "
                f"images. This machine has {memory():,}, half of which is given to it. Leave it out, or choose a "
                "smaller backbone or image_size."
            )

    def logits(self, split: str, index: Tensor, images: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of the images [B] of a split; `images` gives those of some rows, normalised, when they are new."""
        at = index.cpu()
        new = ~self.known[split][at]
        if new.any():
            self._keep(split, at[new], self._frozen(images(new.to(index.device))))
        kept = (part.index_select(0, at).to(index.device) for part in self.kept[split])
        return self.tuned.head(self._method().features(*kept))

    def _keep(self, split: str, at: Tensor, frozen: Kept) -> None:
        if split not in self.kept:
            self.kept[split] = tuple(
                part.new_empty((self.counts[split], *part.shape[1:]), device="cpu") for part in frozen
            )
        for part, values in zip(self.kept[split], frozen, strict=True):
            part[at] = values.cpu()
        self.known[split][at] = True

    def _frozen(self, images: Tensor) -> Kept:
        return self._method().frozen(self.tuned.backbone, images)

    def _method(self) -> Cacheable:
        (method,) = self.tuned.methods
        return cast(Cacheable, method)
