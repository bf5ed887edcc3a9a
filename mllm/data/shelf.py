"""Samples as bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator

import numpy as np

from mllm.sample import Sample


class Shelf:
    """Samples, pickled into one array and read one at a time.

    Python counts references inside each object, so every worker that only reads a list of a million samples copies it
    page by page; it shares one array.

    Args:
        samples: In their order.
    """

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        # What samples have in common, such as a file's name, is stored with each; protocol 5 is compact enough.
        pieces = [pickle.dumps(sample, protocol=5) for sample in samples]
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        start = self._ends[position - 1] if position else 0
        return pickle.loads(self._bytes[start : self._ends[position]].tobytes())

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def take(self, positions: Iterable[int]) -> Shelf:
        """The samples at these positions."""
        return Shelf(self[i] for i in positions)
