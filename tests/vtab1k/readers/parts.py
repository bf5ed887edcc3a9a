"""Images and archives that the fakes are put together of."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Members = dict[str, bytes]


def colour(seed: str) -> tuple[int, int, int]:
    """A colour that goes with a name."""
    red, green, blue = np.random.default_rng(list(seed.encode())).integers(0, 256, 3).tolist()
    return red, green, blue


def picture(seed: str, size: tuple[int, int], form: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image file (width, height) of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour(seed)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def textured(seed: str, size: tuple[int, int]) -> Image.Image:
    """Waves in a colour of its own."""
    across, down = np.arange(size[0]), np.arange(size[1])[:, None]
    pixels = np.array(colour(seed)) * 0.5 + 60 + 50 * (np.sin(across / 11) * np.cos(down / 7))[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def eye(seed: str, size: tuple[int, int]) -> bytes:
    """A textured disc on black."""
    width, height = size
    across, down = np.arange(width) - width // 2, np.arange(height)[:, None] - height // 2
    pixels = np.array(textured(seed, size))
    pixels[across**2 + down**2 > (0.45 * height) ** 2] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_tar(path: Path, members: Members, mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))


def write_zip(path: Path, members: Members) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)


def write_folder(path: Path, members: Members) -> None:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def text_lines(rows: Iterable[str]) -> bytes:
    return ("\n".join(rows) + "\n").encode()
