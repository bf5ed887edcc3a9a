"""Files that are read again in every epoch: a run ends where one is no longer what it was when the run began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vpeft.data.images import UnreadableImage, printable

_REMEDY = (
    "Leave the data as they are while a run reads them; put the file back, and --train.resume true goes on from the "
    "last checkpoint."
)
_ABSENT = (-1, -1)

Read = TypeVar("Read")


class Steady:
    """The files of a split, with the size and the time of change that each has now.

    Args:
        files: In the order of their positions.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._stamps = np.array([_stamp(file) for file in files], np.int64).reshape(len(files), 2)

    def take(self, positions: Sequence[int]) -> Steady:
        """Of these positions alone."""
        kept = Steady([])
        kept.files, kept._stamps = [self.files[i] for i in positions], self._stamps[list(positions)]
        return kept

    def read(self, position: int, reader: Callable[[Path], Read]) -> Read:
        """What a reader makes of a file.

        Raises:
            UnreadableImage: The file is gone or another one by now; the message says what to do.
        """
        file = self.files[position]
        now = _stamp(file)
        if now != tuple(self._stamps[position]):
            what = "is gone, which was there" if now == _ABSENT else "is not the file any more that it was"
            raise UnreadableImage(f"{printable(file)} {what} when the run began. {_REMEDY}")
        return reader(file)


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return _ABSENT
    return found.st_size, found.st_mtime_ns
