"""A file becomes a uint8 tensor [3, H, W]: decode, turn upright, make RGB, resize.

H W  height and width in pixels
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class UnreadableImage(ValueError):
    """A file that is not a whole image."""


def load_image(path: Path, size: tuple[int, int], resize: Resize, interpolation: Interpolation) -> Tensor:
    """Decode one file into uint8 [3, H, W].

    Args:
        path: Any format Pillow reads; of an animation, the first frame.
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
        UnreadableImage: The file is missing, empty, cut short or no image; the message has its path.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise UnreadableImage(f"{path} is empty (0 bytes); restore or remove it.")
    return _decoded(path, str(path))


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """As `decode`, of a file's bytes; `name` stands for its path in messages."""
    if not data:
        raise UnreadableImage(f"{name} is empty (0 bytes); restore or remove it.")
    return _decoded(io.BytesIO(data), name)


def _decoded(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableImage(f"{name} could not be read as an image ({reason}); restore or remove it.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it; the upper byte is what 16-bit RGB gets.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("the pixels are floating-point numbers, whose range no file states")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        # What a viewer shows: the colour under transparent pixels is arbitrary.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def resized(image: Image.Image, size: tuple[int, int], resize: Resize, interpolation: Interpolation) -> Image.Image:
    """The image at (H, W), as `load_image` resizes it."""
    height, width = size
    if resize == "squash":
        return image.resize((width, height), _FILTERS[interpolation])
    return ImageOps.fit(image, (width, height), _FILTERS[interpolation])
