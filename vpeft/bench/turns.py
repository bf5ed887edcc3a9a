"""Rounds in which all take turns, so that what else a machine does meets all of them, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of measurements; of a single one all three are that one.

        Raises:
            ValueError: There are none.
        """
        if not values:
            raise ValueError("There is no measurement to take a median of; measure one round at least.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __format__(self, spec: str) -> str:
        if f"{self.low:{spec}}" == f"{self.high:{spec}}":
            return f"{self.median:{spec}}"
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> Iterator[dict[str, T]]:
    """What each of `runs` gave, round by round; the order is turned round each time.

    Args:
        runs: By name.
        rounds: How many.
    """
    names = list(runs)
    for turn in range(rounds):
        found = {name: runs[name]() for name in (reversed(names) if turn % 2 else names)}
        yield {name: found[name] for name in names}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of pairs that were measured in the same round."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
