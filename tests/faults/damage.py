"""Files as a bad disk, a cut copy or a crash leaves them."""

from __future__ import annotations

import random
from collections.abc import Iterator


def cuts(content: bytes, step: int = 1000) -> Iterator[tuple[int, bytes]]:
    """What is left where a file ends after each kilobyte, and one byte before its end."""
    for length in [*range(0, len(content), step), len(content) - 1]:
        yield length, content[:length]


def flips(content: bytes, count: int, first: int = 0, last: int | None = None, seed: int = 0) -> Iterator[bytes]:
    """Copies with one flipped bit each, at seeded places between two offsets."""
    rng = random.Random(seed)
    for _ in range(count):
        at, copy = rng.randrange(first, len(content) if last is None else last), bytearray(content)
        copy[at] ^= 1 << rng.randrange(8)
        yield bytes(copy)
