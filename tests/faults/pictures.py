"""Image files of every kind that cameras, scanners and other programs write, and what their first pixel looks like."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, WHITE = (255, 0, 0), (255, 255, 255)
_LEVEL = 0x4D12  # of 16 bits: 0x4D of 8


def _flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]


def _frames(path: Path, **options: Any) -> None:
    first, *others = [_flat("RGB", colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    first.save(path, save_all=True, append_images=others, **options)


def _levels(path: Path, **options: Any) -> None:
    Image.fromarray(np.full((8, 8), _LEVEL, np.uint16)).save(path, **options)


def _palette(path: Path) -> None:
    image = _flat("P", 0)
    image.putpalette([*RED, *[0] * 765])
    image.save(path, transparency=0)


# Name of a file -> what writes it, and the colour that it shows.
KINDS: dict[str, tuple[Callable[[Path], None], tuple[int, int, int]]] = {
    "cmyk.jpg": (lambda path: _flat("CMYK", (0, 255, 255, 0)).save(path, quality=100), RED),
    "cmyk.tif": (lambda path: _flat("CMYK", (0, 255, 255, 0)).save(path), RED),
    "ycbcr.tif": (lambda path: _flat("RGB", RED).convert("YCbCr").save(path), (254, 0, 0)),
    "lab.tif": (lambda path: _flat("LAB", (255, 128, 128)).save(path), (254, 255, 254)),
    "grey16.png": (_levels, (0x4D, 0x4D, 0x4D)),
    "grey16.tif": (_levels, (0x4D, 0x4D, 0x4D)),
    "grey16-clear.png": (lambda path: _levels(path, transparency=_LEVEL), WHITE),
    "palette-clear.png": (_palette, WHITE),
    "palette-clear.gif": (_palette, WHITE),
    "grey-alpha.png": (lambda path: _flat("LA", (9, 0)).save(path), WHITE),
    "grey-half.png": (lambda path: _flat("LA", (9, 128)).save(path), (132, 132, 132)),
    "rgba.webp": (lambda path: _flat("RGBA", (9, 9, 9, 0)).save(path, lossless=True), WHITE),
    "colour-key.png": (lambda path: _flat("RGB", (1, 2, 3)).save(path, transparency=(1, 2, 3)), WHITE),
    "one-bit.png": (lambda path: _flat("1", 1).save(path), WHITE),
    "animated.gif": (_frames, RED),
    "animated.webp": (lambda path: _frames(path, lossless=True), RED),
    "animated.png": (_frames, RED),
    "pages.tif": (_frames, RED),
    "stereo.mpo.jpg": (lambda path: _frames(path, format="MPO", quality=100, subsampling=0), (254, 0, 0)),
}


def write_kinds(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """All of them, and the colour of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (write, colour) in KINDS.items():
        write(folder / name)
        found[folder / name] = colour
    return found


def write_rotations(folder: Path) -> list[Path]:
    """One picture of four colours in a file for each of EXIF's eight orientations: all look the same in a viewer."""
    folder.mkdir(parents=True, exist_ok=True)
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8], upright[:4, 8:], upright[4:, :8] = RED, (0, 255, 0), (0, 0, 255)
    turns = [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1),
        lambda x: x.swapaxes(0, 1)[:, ::-1][::-1, ::-1],
        lambda x: x.swapaxes(0, 1)[::-1, ::-1],
        lambda x: x.swapaxes(0, 1)[:, ::-1],
    ]
    for number, turn in enumerate(turns, start=1):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(np.ascontiguousarray(turn(upright))).save(folder / f"{number}.png", exif=exif)
    return [folder / f"{number}.png" for number in range(1, 9)]


def write_claim(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
