"""Images decoded once into one uint8 tensor; splits too large for memory are decoded anew for every batch.

N images, B images of a batch, H W pixels
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vpeft.data.images import Interpolation, Resize, UnreadableImage, load_image
from vpeft.data.listing import Split
from vpeft.data.steady import Steady

# What a container may use, in the two versions of cgroups; a process outside any has none of these files.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory() -> int:
    """Bytes of this machine, or of the container that this runs in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # the latter for "max", which is no limit
            limits.append(int(file.read_text()))
    return min(limits)


def memory_limit() -> int:
    """Bytes that all splits of all processes here may take: 4 GiB, or a quarter of the memory where that is less."""
    return min(4 * 2**30, memory() // 4)


class Images:
    """The images of one split at one size, every file of which has been read once.

    Args:
        split: Files and labels.
        size: (H, W).
        resize: As in `load_image`.
        interpolation: As in `load_image`.
        skip: Leave unreadable files out instead of raising; `skipped` has their messages.
        limit: Bytes above which files are decoded anew for every batch.

    Raises:
        UnreadableImage: A file cannot be read, and `skip` is off or no file is left.
    """

    def __init__(
        self, split: Split, size: tuple[int, int], resize: Resize, interpolation: Interpolation, skip: bool, limit: int
    ) -> None:
        self.split = split
        self.skipped: list[str] = []
        self._load = partial(load_image, size=size, resize=resize, interpolation=interpolation)
        # Plain memory, not /dev/shm (64 MB in many containers): forked workers see these pages, and as nobody
        # writes to them there is one copy all the same; where workers are spawned torch shares it itself.
        fits = len(split) * 3 * size[0] * size[1] <= limit
        self._pixels = torch.empty((len(split), 3, *size), dtype=torch.uint8) if fits else None
        self._steady = Steady([] if fits else split.files)
        # Even where nothing is kept: a bad file is to be found before training, and what is skipped before an
        # order is drawn.
        self._read_all(skip)
        self.labels = torch.tensor(self.split.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def cached(self) -> bool:
        """Whether batches come from memory."""
        return self._pixels is not None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the images take."""
        return 0 if self._pixels is None else self._pixels.nbytes

    def take(self, positions: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of these positions [B].

        Raises:
            UnreadableImage: A file that is read anew is gone or was changed.
        """
        if self._pixels is not None:
            return self._pixels.index_select(0, positions)
        return torch.stack([self._steady.read(i, self._load) for i in positions.tolist()])

    def _read_all(self, skip: bool) -> None:
        read = partial(self._read, skip=skip)
        # Threads: Pillow decodes and resizes without holding the interpreter's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            failures = list(pool.map(read, range(len(self.split)), self.split.files))
        self.skipped = [failure for failure in failures if failure]
        if self.skipped:
            self._keep([i for i, failure in enumerate(failures) if not failure])

    def _read(self, position: int, file: Path, skip: bool) -> str | None:
        try:
            image = self._load(file)
        except UnreadableImage as error:
            if not skip:
                raise
            return str(error)
        if self._pixels is not None:
            self._pixels[position] = image
        return None

    def _keep(self, positions: list[int]) -> None:
        if not positions:
            raise UnreadableImage(
                f"None of the {len(self.split)} images of this split can be read, so there is nothing left to skip to. "
                f"The first: {self.skipped[0]}"
            )
        self.split = self.split.take(positions)
        if self._pixels is not None:
            self._pixels = self._pixels[positions]
        else:
            self._steady = self._steady.take(positions)
