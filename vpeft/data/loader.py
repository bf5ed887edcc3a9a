"""Batches whose content depends on the seed, the epoch and the position alone.

The sampler hands out (epoch, positions) and not positions only: a persistent worker has no other way
to know the epoch, and everything random follows from it.

    N images, B images of a batch, H W pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vpeft.data.cache import Images

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Augment = Literal["none", "flip", "crop_flip"]
Fetch = tuple[int, list[int]]

# Separate streams of random numbers for the order and for what is done to an image.
_ORDER, _CHANGE = 0, 1


class EpochSampler(Sampler[Fetch]):
    """This process's batches of an epoch.

    Args:
        length: N.
        batch_size: B.
        seed: With the epoch it decides the order.
        shuffle: False keeps the order of the list.
        drop_last: Leave out a smaller last batch.
        rank, world: Every process takes each `world`-th image from `rank` on. The order is extended from its
            start until all have equally many, so `index` can occur twice in an evaluation.
        start: (epoch, batch) that a resumed run goes on with.

    Raises:
        ValueError: `drop_last` leaves no batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world, self.start = rank, world, start
        self.epoch = start[0]
        if drop_last and not len(self):
            raise ValueError(
                f"data.drop_last leaves no batch: {self._share} images a process do not fill a batch of {batch_size}. "
                "Lower data.batch_size or turn drop_last off."
            )

    @property
    def _share(self) -> int:
        return -(-self.length // self.world)

    def __len__(self) -> int:
        return self._share // self.batch_size if self.drop_last else -(-self._share // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Fetch]:
        epoch = self.epoch
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.length)
        mine = np.resize(order, self._share * self.world)[self.rank :: self.world]
        first = self.start[1] if epoch == self.start[0] else 0
        for batch in range(first, len(self)):
            yield epoch, mine[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class Batches(Dataset[dict[str, Tensor]]):
    """Whole batches at a time: {"image": uint8 [B, 3, H, W], "label": int64 [B], "index": int64 [B]}.

    Args:
        images: The split.
        size: (H, W) of a batch; a random crop of it where `images` are larger.
        seed: With epoch and position it decides every change.
        augment: `flip` mirrors half of the images; `crop_flip` crops at a random place as well.
    """

    def __init__(self, images: Images, size: tuple[int, int], seed: int = 0, augment: Augment = "none") -> None:
        self.images, self.size, self.seed, self.augment = images, size, seed, augment
        self._epoch, self._draws = -1, np.empty((0, 3))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        epoch, positions = fetch
        index = torch.tensor(positions, dtype=torch.int64)
        image = self.images.take(index)
        if self.augment != "none":
            image = self._change(image, self._random(epoch)[positions])
        elif tuple(image.shape[-2:]) != self.size:  # kept larger for random crops
            height, width = self.size
            top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
            image = image[..., top : top + height, left : left + width]
        return {"image": image, "label": self.images.labels[index], "index": index}

    def _random(self, epoch: int) -> np.ndarray:
        # Three numbers for every image of the epoch, so that a batch's own do not depend on its neighbours.
        if epoch != self._epoch:
            self._draws = np.random.default_rng([self.seed, epoch, _CHANGE]).random((len(self.images), 3))
            self._epoch = epoch
        return self._draws

    def _change(self, image: Tensor, draws: np.ndarray) -> Tensor:
        height, width = self.size
        room = (image.shape[2] - height + 1, image.shape[3] - width + 1)
        changed = torch.empty((len(image), 3, height, width), dtype=torch.uint8)
        for i, (side, down, right) in enumerate(draws.tolist()):
            y, x = int(down * room[0]), int(right * room[1])
            piece = image[i, :, y : y + height, x : x + width]
            changed[i] = piece.flip(-1) if side < 0.5 else piece
        return changed


def reached(trainer: Trainer | None, start: tuple[int, int]) -> dict[str, int]:
    """Epoch and batch that a run resumed from here goes on with; `start` where nothing has run."""
    epoch, batch = start
    if trainer is not None:
        loop, epoch = trainer.fit_loop, trainer.current_epoch
        between = loop.epoch_progress.current.ready == epoch
        done: int = loop.epoch_loop.batch_progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
        batch = 0 if between else done
        if batch >= trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
    return {"epoch": epoch, "batch": batch}


def as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: the dataset returns whole batches."""
    return batch


def make_loader(
    batches: Dataset[dict[str, Tensor]], sampler: Sampler[Fetch], workers: int
) -> DataLoader[dict[str, Tensor]]:
    """A loader over ready batches; its workers live as long as it does."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=as_it_is,  # pyright: ignore[reportArgumentType]  (its type expects a list of samples)
        pin_memory=torch.cuda.is_available(),
    )
