"""Images with their masks: checked before training, kept in memory where they fit.

N images, B images of a batch, H W pixels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.random import MT19937, RandomState, SeedSequence
from torch import Tensor
from torch.utils.data import Dataset

from vpeft.data.augment import Changes, Pair, rescaled
from vpeft.data.images import decode, upright_size
from vpeft.data.loader import Fetch
from vpeft.data.masked import MaskedSplit
from vpeft.data.masks import ClassTable, read_mask
from vpeft.data.opencv import resize
from vpeft.data.steady import Steady

Change = Callable[[np.ndarray, np.ndarray, Changes, RandomState], Pair]

# A stream of random numbers apart from that of the order.
_CHANGE = 1


class Annotated:
    """The images and masks of one split.

    Args:
        split: Their files.
        classes: The table that ids are checked against.
        reduce_zero_label: As in `read_mask`.
        limit: Bytes above which files are decoded anew for every batch.
        check: Decode every mask now even where they are not kept, so that a bad one is found before training.

    Raises:
        UnreadableImage: A file cannot be read.
        ValueError: An image and its mask differ in size, or a mask has ids outside the table.
    """

    def __init__(
        self, split: MaskedSplit, classes: ClassTable, reduce_zero_label: bool, limit: int, check: bool = False
    ) -> None:
        self.split, self.classes, self.reduce_zero_label = split, classes, reduce_zero_label
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self.sizes = list(pool.map(_matching_size, split.images, split.masks))
            width = 4 if len(classes.names) <= 255 else 5  # bytes a pixel, mask included
            self.nbytes = width * sum(height * width for height, width in self.sizes)
            self._images, self._masks = Steady(split.images), Steady(split.masks)
            self._pairs = list(pool.map(self._read, range(len(split)))) if self.nbytes <= limit else None
            if self._pairs is None:
                self.nbytes = 0
                for _ in pool.map(self._mask, range(len(split) if check else 0)):
                    pass

    def __len__(self) -> int:
        return len(self.split)

    @property
    def cached(self) -> bool:
        """Whether batches come from memory."""
        return self._pairs is not None

    def __getitem__(self, position: int) -> Pair:
        """uint8 [H, W, 3] and the ids [H, W]."""
        return self._pairs[position] if self._pairs is not None else self._read(position)

    def _read(self, position: int) -> Pair:
        return np.asarray(self._images.read(position, decode)), self._mask(position)

    def _mask(self, position: int) -> np.ndarray:
        return self._masks.read(position, lambda file: read_mask(file, self.classes, self.reduce_zero_label))


class MaskedBatches(Dataset[dict[str, Tensor]]):
    """Whole batches at a time: {"image": uint8 [B, 3, H, W], "mask": int64 [B, H, W], "index": int64 [B]}.

    Args:
        pairs: The split.
        changes: What is done in training; in evaluation only its `scale` is used, and the mask keeps its own size.
        seed: With epoch and position it decides every change.
        change: How training images are changed; None evaluates.
    """

    def __init__(self, pairs: Annotated, changes: Changes, seed: int = 0, change: Change | None = None) -> None:
        self.pairs, self.changes, self.seed, self.change = pairs, changes, seed, change

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        images, masks = zip(*self._made(*fetch), strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            "mask": torch.from_numpy(np.stack(masks).astype(np.int64)),
            "index": torch.tensor(fetch[1], dtype=torch.int64),
        }

    def _made(self, epoch: int, positions: list[int]) -> Iterator[Pair]:
        for position in positions:
            image, mask = self.pairs[position]
            if self.change:
                # Of its own, so that an image's changes do not depend on its neighbours or on the worker.
                bits = MT19937(SeedSequence([self.seed, epoch, _CHANGE, position]))
                yield self.change(image, mask, self.changes, RandomState(bits))
            else:
                yield resize(image, rescaled(image.shape, self.changes.scale)), mask


def _matching_size(image: Path, mask: Path) -> tuple[int, int]:
    """(H, W) of an image and of its mask, from their headers."""
    size, wanted = upright_size(image), upright_size(mask)
    if size != wanted:
        raise ValueError(
            f"{image} is {size[1]} x {size[0]} pixels and its mask {mask} is {wanted[1]} x {wanted[0]}; a mask has a "
            "pixel for each of the image's. Replace the one that was resized or turned."
        )
    return size
