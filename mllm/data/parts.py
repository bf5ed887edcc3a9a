"""The samples of a data set by part, without those whose images cannot be read; the same ones when a run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from mllm.data.images import Pictures
from mllm.data.shelf import Shelf


class Parts(Mapping[str, Shelf]):
    """Parts of a data set, by name.

    Samples are left out when a run begins. One that goes on leaves out the same, whatever can be read by then: every
    order is drawn over the samples that there are. Those whose images have vanished meanwhile keep their places, and
    nothing is learned from them, as if the run had not been stopped.

    Args:
        found: All samples.
    """

    def __init__(self, found: Mapping[str, Shelf]) -> None:
        self._found = dict(found)
        self._left_out: dict[str, list[int]] = {part: [] for part in found}
        self._here = dict(found)
        self._sha256 = ""

    def __getitem__(self, part: str) -> Shelf:
        return self._here[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._here)

    def __len__(self) -> int:
        return len(self._here)

    @property
    def skipped(self) -> int:
        """Samples left out, of all parts."""
        return sum(len(positions) for positions in self._left_out.values())

    def leave_out(self, pictures: Pictures) -> None:
        """Leave out what shows an image that could not be read.

        Raises:
            ValueError: Nothing of a part is left.
        """
        if pictures.reasons:
            self._take({part: _failed(samples, pictures) for part, samples in self._found.items()})
        for part, samples in self._found.items():
            if len(samples) and not len(self[part]):
                raise ValueError(
                    f"Not one sample of {part} has all its images, so there is nothing left to skip to. The first: "
                    f"{pictures.reasons[0]}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Which samples there were, by a hash of them all, and the positions of those left out."""
        return {"sha256": self._hash(), "left_out": self._left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Leave out what was left out then.

        Raises:
            ValueError: The samples are others.
        """
        if state["sha256"] != self._hash():
            raise ValueError(
                "The run cannot go on: its data holds other samples, or in another order, than when it began. Restore "
                "the files of data.files, or begin a new run."
            )
        self._take(state["left_out"])

    def _take(self, left_out: Mapping[str, list[int]]) -> None:
        self._left_out = {part: list(positions) for part, positions in left_out.items()}
        for part, samples in self._found.items():
            without = set(self._left_out[part])
            kept = (i for i in range(len(samples)) if i not in without)
            self._here[part] = samples.take(kept) if without else samples

    def _hash(self) -> str:
        if not self._sha256:
            digest = hashlib.sha256()
            for part, samples in self._found.items():
                digest.update(part.encode())
                for sample in samples:
                    digest.update(repr(sample).encode())
            self._sha256 = digest.hexdigest()
        return self._sha256


def _failed(samples: Shelf, pictures: Pictures) -> list[int]:
    failed = {source for source, lost in zip(pictures.sources, pictures.failed.tolist(), strict=True) if lost}
    return [i for i, sample in enumerate(samples) if not failed.isdisjoint(sample.images)]
