"""Which samples go together: several in a row, or all of a batch of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from vpeft.data.loader import Fetch

WINDOW = 1024
# As in transformers' own grouping by length.
_MEGA = 50
# Streams of random numbers: vpeft.data.loader has 0 for the order of an epoch and 1 for changes of images.
_GROUP, _PACK = 2, 3


def first_fit(lengths: Sequence[int], capacity: int, seed: int, window: int = WINDOW) -> list[list[int]]:
    """Rows of samples: each goes into the first row of its window that has room for it.

    The rows depend on the seed and not on the epoch, so that every epoch has equally many; their order is shuffled
    every epoch. As samples of a row do not see each other, the row a sample is in changes nothing for it.

    Args:
        lengths: Tokens of every sample, at most `capacity`.
        capacity: Tokens of a row.
        seed: Decides the order in which samples are placed.
        window: Samples that are placed before the rows are closed.

    Returns:
        Positions of the samples of each row.

    Raises:
        ValueError: A sample is longer than a row.
    """
    if len(lengths) and max(lengths) > capacity:
        raise ValueError(f"A sample of {max(lengths)} tokens does not fit into a row of {capacity}; make rows longer.")
    order = np.random.default_rng([seed, _PACK]).permutation(len(lengths))
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        placed = order[start : start + window].tolist()
        room, first = np.full(len(placed), capacity), len(rows)
        for sample in placed:
            row = int(np.argmax(room >= lengths[sample]))
            if first + row == len(rows):
                rows.append([])
            rows[first + row].append(sample)
            room[row] -= lengths[sample]
    return rows


class GroupedSampler(Sampler[Fetch]):
    """Batches of samples of similar length, all with images or all without (LLaVA's group_by_modality_length).

    Samples are shuffled, cut into mega-batches of 50 batches, sorted by length inside these, and cut into batches,
    whose order is shuffled. What is left of both kinds fills the last batches. A batch is dealt out to the processes
    one sample at a time, so that all have as much to do.

    Args:
        lengths: Tokens of every sample.
        with_images: Whether it has images.
        batch_size: Of one process.
        seed: With the epoch it decides the order.
        rank, world: This process, and how many there are. The last batch is extended from its start until all have
            equally many.
        start: (epoch, batch) that a resumed run goes on with.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        with_images: Sequence[bool],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.lengths, self.with_images = np.asarray(lengths), np.asarray(with_images, dtype=bool)
        self.batch_size, self.seed, self.rank, self.world, self.start = batch_size, seed, rank, world, start
        self.epoch = start[0]

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world))

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Fetch]:
        epoch = self.epoch
        first = self.start[1] if epoch == self.start[0] else 0
        for batch in self._batches(epoch)[first:]:
            yield epoch, batch[self.rank :: self.world].tolist()

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, _GROUP])
        size = self.batch_size * self.world
        whole: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for kind in (True, False):
            order = self._by_length(rng.permutation(np.flatnonzero(self.with_images == kind)), size)
            end = len(order) // size * size
            whole += np.split(order[:end], range(size, end, size)) if end else []
            rest.append(order[end:])
        batches = [whole[i] for i in rng.permutation(len(whole))]
        left = np.concatenate(rest)
        for start in range(0, len(left), size):
            last = left[start : start + size]
            batches.append(np.resize(last, -(-len(last) // self.world) * self.world))
        return batches

    def _by_length(self, order: np.ndarray, size: int) -> np.ndarray:
        mega = size * max(1, min(len(order) // (4 * size), _MEGA))
        parts = [order[start : start + mega] for start in range(0, len(order), mega)]
        return np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts] or [order])
