"""Files as a bad disk, a cut copy or a crash leaves them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vpeft import cli


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


def refusal(call: Callable[[], object]) -> str:
    """What a call refuses with, which is a sentence of the project and no traceback."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  (the kind is looked at below)
        call()
    error = raised.value
    assert cli._worded(error), repr(error)
    return str(error)


def header(content: bytes) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def everywhere(content: bytes, each: int) -> list[bytes]:
    """Flips in the length of the header, in the header and, last, in the tensors."""
    start = header(content)
    return [*flips(content, 64, 0, 8), *flips(content, each, 8, start), *flips(content, each, start)]


def seen(file: Path, changed: bytes, read: Callable[[], Any], same: Callable[[Any], bool]) -> bool:
    """Whether a changed file is refused; where it is not, what is read must be what was written."""
    file.write_bytes(changed)
    try:
        found = read()
    except (ValueError, FileNotFoundError):
        assert refusal(read)
        return True
    assert same(found)
    return False
