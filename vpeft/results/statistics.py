"""What may be said of means over few seeds and of ranks over few tasks.

    interval       mean +- t(0.975, n - 1) s / sqrt(n)                             Student's t
    Friedman       chi2 with k - 1 degrees of freedom, corrected for ties          M. Friedman, JASA 1937
    Iman-Davenport F = (N - 1) chi2 / (N (k - 1) - chi2), k - 1 and (k - 1)(N - 1)  Comm. Stat. 1980
    Nemenyi        CD = q sqrt(k (k + 1) / (6 N)), q = studentised range / sqrt(2)  thesis, 1963

k methods, N tasks. How the last three are used together: J. Demšar, "Statistical comparisons of classifiers over
multiple data sets", JMLR 7, 2006.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST_METHODS, FEWEST_TASKS = 3, 5
# Above these the approximations of Friedman's statistic are good (Demšar 2006, section 3.2.2).
ENOUGH_METHODS, ENOUGH_TASKS = 5, 10


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of a single value."""
    return stdev(values) if len(values) > 1 else None


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean by Student's t; None of a single value."""
    deviation = spread(values)
    if deviation is None:
        return None
    return float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))


def mean_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """Mean rank of each method over tasks: 1 is the best, equals share theirs.

    Args:
        scores: One list a task, one number a method, higher is better.
    """
    return [float(rank) for rank in _ranks(scores).mean(axis=0)]


def _ranks(scores: Sequence[Sequence[float]]) -> np.ndarray:
    # Means of the same seeds that are equal may differ in their last bits.
    return stats.rankdata(-np.round(np.asarray(scores, float), 9), axis=1)


@dataclass(frozen=True)
class Friedman:
    """Whether methods differ at all over tasks.

    Args:
        methods: k.
        tasks: N.
        chi2: Friedman's statistic, corrected for ties.
        f: That of Iman and Davenport; infinite where all tasks have the same order.
        p: Of f.
    """

    methods: int
    tasks: int
    chi2: float
    f: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the test finds a difference at the 5 % level."""
        return self.p < 1 - LEVEL

    @property
    def rough(self) -> bool:
        """Whether methods or tasks are so few that the distribution is a rough approximation."""
        return self.methods <= ENOUGH_METHODS or self.tasks <= ENOUGH_TASKS


def friedman(scores: Sequence[Sequence[float]]) -> Friedman:
    """Friedman's test with the statistic of Iman and Davenport.

    Args:
        scores: One list a task, one number a method, of at least three methods.

    Raises:
        ValueError: There are fewer than three methods or two tasks.
    """
    ranks = _ranks(scores)
    tasks, methods = ranks.shape
    if methods < 3 or tasks < 2:
        raise ValueError(f"Friedman's test needs 3 methods and 2 tasks or more; given are {methods} and {tasks}.")
    if (ranks == ranks[0, 0]).all():  # every method ties with every other, and the correction for ties divides by zero
        return Friedman(methods, tasks, 0.0, 0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chi2 = min(float(stats.friedmanchisquare(*ranks.T).statistic), float(tasks * (methods - 1)))
    rest = tasks * (methods - 1) - chi2
    f = (tasks - 1) * chi2 / rest if rest > 1e-9 else math.inf
    return Friedman(methods, tasks, chi2, f, float(stats.f.sf(f, methods - 1, (methods - 1) * (tasks - 1))))


def critical_difference(methods: int, tasks: int) -> float:
    """Nemenyi's: mean ranks that differ by less cannot be told apart at the 5 % level."""
    q = float(stats.studentized_range.ppf(LEVEL, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * tasks))


def alike(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """The largest groups of two and more whose ranks differ by less than the critical difference.

    Args:
        ranks: In rising order.

    Returns:
        First and last number of each group.
    """
    groups: list[tuple[int, int]] = []
    for first, low in enumerate(ranks):
        last = max(number for number, high in enumerate(ranks) if high - low < difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, gain) are beaten by none: no other has at most the cost and at least the gain, and one less.

    Returns:
        Their numbers, by rising cost; equal points are all on the front.
    """
    front: list[int] = []
    for number in sorted(range(len(points)), key=lambda one: (points[one][0], -points[one][1])):
        if not front or points[number][1] > points[front[-1]][1] or points[number] == points[front[-1]]:
            front.append(number)
    return front
