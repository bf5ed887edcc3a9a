"""Random choices that are the same with every library version: the order of sha256 hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def ranked(positions: Iterable[int], key: str, names: Sequence[str]) -> list[int]:
    """Positions in the order of the hashes of `key` and their names."""
    return sorted(
        positions, key=lambda i: hashlib.sha256(f"{key}/{names[i]}".encode("utf-8", "surrogateescape")).digest()
    )


def stratified(labels: Sequence[int], sizes: Sequence[int], key: str) -> list[list[int]]:
    """Disjoint splits of given sizes in which every class has its share.

    Args:
        labels: Label of every example.
        sizes: Examples of each split.
        key: Another key is another cut.

    Returns:
        Positions of each split, classes mixed.

    Raises:
        ValueError: There are fewer examples than the sizes add up to.
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"{key}: {sum(sizes)} examples were asked for, and there are {len(labels)}.")
    names = [str(i) for i in range(len(labels))]
    pools: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for i in ranked(range(len(labels)), key, names):
        pools[labels[i]].append(i)
    splits = []
    for size in sizes:
        chosen = []
        for label, count in zip(pools, shares([len(pool) for pool in pools.values()], size), strict=True):
            chosen += pools[label][:count]
            pools[label] = pools[label][count:]
        splits.append(ranked(chosen, key, names))
    return splits


def shares(counts: Sequence[int], size: int) -> list[int]:
    """Divide `size` in proportion to `counts`, whole numbers, largest remainder first."""
    exact = [size * count / sum(counts) for count in counts]
    given = [int(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: (given[i] - exact[i], i))
    for i in by_remainder[: size - sum(given)]:
        given[i] += 1
    return given
