"""The images of a data set at the size of the vision tower, each once however many samples show it.

n images of a data set, I of a batch, H W pixels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from mllm.sample import Held, Source, Stored
from vpeft.data.images import Interpolation, UnreadableImage, as_tensor, decode, decode_bytes, resized

Aspect = Literal["pad", "squash", "crop"]


@dataclass(frozen=True)
class Look:
    """How a file's pixels become those of a batch.

    Args:
        size: (H, W).
        aspect: `pad` to the shape of the input, `squash`, or `crop` the middle.
        interpolation: Pillow's filter, antialiased when it shrinks.
        fill: RGB of what is padded; the mean that the tower subtracts, so that it becomes 0 (LLaVA-1.5).
    """

    size: tuple[int, int]
    aspect: Aspect = "pad"
    interpolation: Interpolation = "bicubic"
    fill: tuple[int, int, int] = (122, 116, 104)

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, H, W] of an RGB image."""
        if self.aspect == "pad":
            return as_tensor(resized(padded(image, self.size, self.fill), self.size, "squash", self.interpolation))
        return as_tensor(resized(image, self.size, self.aspect, self.interpolation))


def padded(image: Image.Image, size: tuple[int, int], fill: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of the smallest canvas of the shape (H, W) that holds it; a square in LLaVA-1.5."""
    height, width = size
    across = max(image.width, -(-image.height * width // height))
    down = max(image.height, -(-image.width * height // width))
    canvas = Image.new("RGB", (across, down), fill)
    canvas.paste(image, ((across - image.width) // 2, (down - image.height) // 2))
    return canvas


def read(source: Source) -> Image.Image:
    """An image as upright RGB.

    Raises:
        UnreadableImage: It is missing, empty, cut short or no image; the message has its path.
    """
    if isinstance(source, Held):
        return decode_bytes(source.data, source.name)
    if isinstance(source, Stored):
        try:
            with source.file.open("rb") as file:
                file.seek(source.offset)
                data = file.read(source.size)
        except OSError as error:
            raise UnreadableImage(f"{source.file} could not be read: {error.strerror}; restore it.") from error
        return decode_bytes(data, f"{source.file}, {source.name}")
    return decode(source)


class Pictures:
    """The images of all splits: `take` gives pixels by position.

    They are decoded once and kept where they fit into `limit`; else every batch decodes its own, and only whether files
    are there is seen at once. What a skipped image shows is black, and `failed` says which those are, in all processes
    of a loader: no order changes when a file is lost in the middle of a run.

    Args:
        sources: In any order, repeated or not.
        look: How they are prepared.
        skip: Go on without images that cannot be read.
        limit: Bytes that may be kept.

    Raises:
        UnreadableImage: An image cannot be read, and `skip` is off.
    """

    def __init__(self, sources: Iterable[Source], look: Look, skip: bool, limit: int) -> None:
        self.sources: list[Source] = list(dict.fromkeys(sources))
        self.look, self.skip = look, skip
        self._position = {source: i for i, source in enumerate(self.sources)}
        self.failed = torch.zeros(len(self.sources), dtype=torch.bool).share_memory_()
        self.reasons: list[str] = []
        fits = 3 * look.size[0] * look.size[1] * len(self.sources) <= limit
        self._pixels = torch.zeros((len(self.sources), 3, *look.size), dtype=torch.uint8) if fits else None
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for reason in pool.map(self._first_look, range(len(self.sources))):
                self.reasons += [reason] if reason else []

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def kept(self) -> bool:
        """Whether all are in memory."""
        return self._pixels is not None

    def position(self, source: Source) -> int:
        """Where an image is in `take`."""
        return self._position[source]

    def take(self, positions: Tensor) -> Tensor:
        """uint8 [I, 3, H, W] of these positions [I].

        Raises:
            UnreadableImage: One cannot be read, and none is skipped.
        """
        if self._pixels is not None:
            return self._pixels.index_select(0, positions)
        images = [self._read(i)[0] for i in positions.tolist()]
        return torch.stack(images) if images else torch.empty((0, 3, *self.look.size), dtype=torch.uint8)

    def changed(self, positions: Sequence[int], changes: Sequence[Callable[[Image.Image], Tensor]]) -> Tensor:
        """As `take`, each image read again and made what its own function makes of it."""
        images = [self._read(i, change)[0] for i, change in zip(positions, changes, strict=True)]
        return torch.stack(images) if images else torch.empty((0, 3, *self.look.size), dtype=torch.uint8)

    def _first_look(self, position: int) -> str | None:
        source = self.sources[position]
        if self._pixels is not None:
            image, reason = self._read(position)
            self._pixels[position] = image
            return reason
        file = source.file if isinstance(source, Stored) else source
        if isinstance(file, Held) or file.is_file():
            return None
        return self._fail(position, UnreadableImage(f"{file} is missing; restore it."))

    def _read(self, position: int, look: Callable[[Image.Image], Tensor] | None = None) -> tuple[Tensor, str | None]:
        try:
            return (look or self.look)(read(self.sources[position])), None
        except UnreadableImage as error:
            return torch.zeros((3, *self.look.size), dtype=torch.uint8), self._fail(position, error)

    def _fail(self, position: int, error: UnreadableImage) -> str:
        if not self.skip:
            raise UnreadableImage(f"{error} With data.on_missing skip, samples of such images are left out.") from error
        self.failed[position] = True
        return str(error)
