"""What a reader of an original data set gives: examples with the keys that TFDS gives them.

The key decides an example's place: TFDS sorts every split by the hash of the key, and VTAB-1k's 800 training
images are the first of that order (`vpeft.vtab1k.order`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Example:
    """One image of a data set.

    Args:
        key: What TFDS's builder yields as the example's key, of the same type.
        label: VTAB's label, after the task's label map.
        image: Decodes the image when called. What it refers to is shared with worker processes by fork, so it
            may hold arrays; files are opened in the call and not before.
    """

    key: str | int
    label: int
    image: Callable[[], Image.Image | np.ndarray]


@dataclass(frozen=True)
class Needed:
    """A file that must lie in the folder of archives.

    Args:
        name: Its file name there.
        url: Where it comes from.
        sha256: Hex digest, where TFDS's checksums tell it.
        md5: Hex digest, where only that is known.
        size: Bytes, where known.
        manual: It cannot be had by its URL alone; the reader's HOW says how.
    """

    name: str
    url: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None
    manual: bool = False


class Reader(Protocol):
    """A module that reads one data set; its docstring tells source, licence and archives."""

    ARCHIVES: tuple[Needed, ...]
    HOW: str

    def read(self, folder: Path, task: str) -> dict[str, list[Example]]:
        """Examples of every TFDS split ('train', 'validation', 'test') that the task uses.

        The order within a list is free, but it is the order in which images are asked for: list them as they
        lie in the archive, so that a compressed one is read forward.
        """
        ...


def locate(folder: Path, needed: Needed, how: str) -> Path:
    """The path of a needed file in the folder of archives.

    Args:
        how: The reader's HOW, for the message.

    Raises:
        ValueError: It is not there; says where it comes from.
    """
    path = folder / needed.name
    if not path.exists():
        raise ValueError(f"{path} is missing; it comes from {needed.url}. {how}".rstrip())
    return path
