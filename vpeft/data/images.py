"""A file becomes a uint8 tensor [3, H, W]: decode, turn upright, make RGB, resize.

H W  height and width in pixels
"""

from __future__ import annotations

import functools
import io
import stat
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# What is tried, whatever a file is called. Pillow knows others, one of which (EPS) it gives to another program to run.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Where Pillow too takes a file for a bomb; such an image is 0.5 GB of RGB. Larger ones are to be cut into pieces.
MOST_PIXELS = 178_956_970
# EXIF's orientations that turn an image on its side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


class UnreadableImage(ValueError):
    """A file that is not a whole image."""


def load_image(path: Path, size: tuple[int, int], resize: Resize, interpolation: Interpolation) -> Tensor:
    """Decode one file into uint8 [3, H, W].

    Args:
        path: In one of `FORMATS`; of an animation, the first frame.
        size: (H, W).
        resize: `squash` ignores the aspect ratio; `crop` covers (H, W) and cuts the centre.
        interpolation: Pillow's filter, antialiased when it shrinks.

    Raises:
        UnreadableImage: The file is missing, empty, cut short or no image; the message has its path.
    """
    return as_tensor(resized(decode(path), size, resize, interpolation))


def as_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W] of an RGB image."""
    # A copy: torch takes only writable arrays without a warning, and PIL lends a read-only one.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode(path: Path) -> Image.Image:
    """One file as an upright RGB image of its own size.

    Raises:
        UnreadableImage: The file is missing, empty, cut short, too large or no image; the message has its path.
        MemoryError: There is too little memory left for it.
    """
    return _decoded(checked(path), printable(path))


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """As `decode`, of a file's bytes; `name` stands for its path in messages."""
    if not data:
        raise UnreadableImage(f"{name} is empty (0 bytes); restore or remove it.")
    return _decoded(io.BytesIO(data), name)


def checked(path: Path) -> Path:
    """The path of a file that has something in it.

    Raises:
        UnreadableImage: It is missing, empty, or no file; opening a pipe would wait for ever.
    """
    name = printable(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # the latter: a name with a zero byte
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableImage(f"{name} is a folder, a pipe or a device and no image file; rename or remove it.")
    if found.st_size == 0:
        raise UnreadableImage(f"{name} is empty (0 bytes); restore or remove it.")
    return path


def upright_size(path: Path) -> tuple[int, int]:
    """(H, W) of the image that `decode` gives, from the file's header alone.

    Raises:
        UnreadableImage: As in `decode`.
    """
    try:
        with open_image(checked(path)) as opened:
            width, height = opened.size
            on_its_side = opened.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        raise _unreadable(printable(path), error) from error
    return (width, height) if on_its_side else (height, width)


def open_image(file: Path | io.BytesIO, name: str | None = None) -> Image.Image:
    """Pillow's image of a file of a known format, not decoded yet.

    Raises:
        UnreadableImage: It has more than `MOST_PIXELS`.
        OSError: It is none of these formats.
    """
    name = printable(file) if isinstance(file, Path) else name
    try:
        opened = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    if opened.width * opened.height > MOST_PIXELS:  # some packages switch Pillow's own limit off
        opened.close()
        raise _too_large(name)
    return opened


def printable(name: Path | str) -> str:
    """A file's name on one line: characters that cannot be printed, and bytes that are no UTF-8, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decoded(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with open_image(file, name) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except UnreadableImage:
        raise
    except MemoryError as error:  # which is no fault of the file
        raise MemoryError(
            f"There is too little memory left to decode {name}; free some, or shrink the image."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UnreadableImage:
    return UnreadableImage(f"{name} could not be read as an image ({why(error)}); restore or remove it.")


def why(error: Exception) -> str:
    """What Pillow or the system said of a file, in words for the user."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known format"
    if isinstance(error, OSError):
        return printable(error.strerror or str(error))
    return printable(f"{type(error).__name__}: {error}")


def _too_large(name: str | None) -> UnreadableImage:
    return UnreadableImage(
        f"{name} has more than {MOST_PIXELS:,} pixels, the most that an image may have here; shrink it, cut it into "
        "pieces, or remove it."
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("the pixels are floating-point numbers, whose range no file states")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        # What a viewer shows: the colour under transparent pixels is arbitrary.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    found = np.asarray(image).astype(np.int64)
    if found.min() < 0 or found.max() > 0xFFFF:
        raise ValueError("the pixels are 32-bit integers, whose range no file states")
    # Pillow clips 16-bit grey to 255 instead of scaling it; the upper byte is what 16-bit RGB gets.
    grey = found >> 8
    if (clear := image.info.get("transparency")) is not None:
        grey = np.where(found == clear, 255, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def resized(image: Image.Image, size: tuple[int, int], resize: Resize, interpolation: Interpolation) -> Image.Image:
    """The image at (H, W), as `load_image` resizes it."""
    height, width = size
    if resize == "squash":
        return image.resize((width, height), _FILTERS[interpolation])
    return ImageOps.fit(image, (width, height), _FILTERS[interpolation])
