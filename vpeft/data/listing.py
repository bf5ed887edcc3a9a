"""What the reader of a layout hands on: which files, which labels, which classes; nothing is decoded yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpeft.data.ranking import ranked


@dataclass(frozen=True)
class Split:
    """Files and labels of one split, in a fixed order."""

    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def __add__(self, other: Split) -> Split:
        return Split(self.files + other.files, self.labels + other.labels)

    def take(self, positions: Sequence[int]) -> Split:
        """The files and labels at these positions."""
        return Split([self.files[i] for i in positions], [self.labels[i] for i in positions])


@dataclass(frozen=True)
class Listing:
    """A data set on disk.

    Args:
        classes: Names in label order.
        train, val, test: The splits; `val` is empty where all training images are trained on.
        provenance: JSON-able facts for the result row.
    """

    classes: list[str]
    train: Split
    val: Split
    test: Split
    provenance: dict[str, Any]


def hold_out(split: Split, names: Sequence[str], share: float, key: str) -> tuple[Split, Split]:
    """Cut a share of every class off a split, the same images on every machine.

    Args:
        split: What is cut.
        names: A stable name for every file; the order of their hashes decides.
        share: Part of every class that goes to the second split, at least one image.
        key: Another key is another cut.

    Raises:
        ValueError: A class has only one image.
    """
    by_class: dict[int, list[int]] = {}
    for i, label in enumerate(split.labels):
        by_class.setdefault(label, []).append(i)
    first, second = [], []
    for positions in by_class.values():
        if len(positions) < 2:
            raise ValueError(
                f"The class of {split.files[positions[0]]} has one image, and a split needs two of every class; add "
                "images, or sort them into train/CLASS/, val/CLASS/ and test/CLASS/ yourself."
            )
        members = ranked(positions, key, names)
        count = max(1, round(share * len(members)))
        second += members[:count]
        first += members[count:]
    return split.take(sorted(first)), split.take(sorted(second))
