from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.layouts import write_image
from vpeft.data.images import UnreadableImage, decode, decode_bytes, load_image


def load(path: Path, size: tuple[int, int] = (2, 2), resize: str = "squash") -> torch.Tensor:
    return load_image(path, size, resize, "bilinear")  # type: ignore[arg-type]


def flat(image: Image.Image, path: Path) -> list[int]:
    """The one colour of a flat image after saving and loading."""
    image.save(path)
    loaded = load(path)
    assert loaded.shape == (3, 2, 2)
    assert loaded.dtype == torch.uint8
    assert (loaded == loaded[:, :1, :1]).all()
    return loaded[:, 0, 0].tolist()


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    assert flat(Image.new("L", (5, 5), 77), tmp_path / "a.png") == [77, 77, 77]


def test_one_bit_becomes_black_or_white(tmp_path: Path) -> None:
    assert flat(Image.new("1", (5, 5), 1), tmp_path / "a.png") == [255, 255, 255]


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    assert flat(Image.new("RGB", (5, 5), (10, 200, 30)).quantize(4), tmp_path / "a.png") == [10, 200, 30]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    assert flat(Image.new("CMYK", (5, 5), (255, 0, 0, 0)), tmp_path / "a.tif") == [0, 255, 255]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 5), 0x4D12, np.uint16)).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").unique().tolist() == [0x4D]


def test_transparent_pixels_are_white_whatever_colour_hides_there(tmp_path: Path) -> None:
    assert flat(Image.new("RGBA", (5, 5), (9, 9, 9, 0)), tmp_path / "a.png") == [255, 255, 255]
    assert flat(Image.new("LA", (5, 5), (9, 255)), tmp_path / "b.png") == [9, 9, 9]


def test_the_exif_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned: rotate a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert load(tmp_path / "a.png", (2, 1))[:, :, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]


def test_squash_fills_and_crop_keeps_the_aspect(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", (4, 4), "crop").min() == 255
    squashed = load(tmp_path / "a.png", (4, 4), "squash")
    assert squashed[0, 0, 0] < 100 < squashed[0, 0, 1]


def test_a_rectangle_is_height_times_width(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    assert load(tmp_path / "a.png", (3, 5), "crop").shape == (3, 3, 5)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    assert (load(tmp_path / "a.png", (8, 8)).float() - 127.5).abs().max() < 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no image at all", "could not be read as an image .it is of no known format"),
        (None, "could not be read as an image .No such file or directory"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"bad\.png {reason}.*; restore or remove it\.$"):
        load(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"short{suffix}"
    write_image(path, 0, (64, 64))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableImage, match=rf"short\{suffix} could not be read as an image"):
        load(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=r"a\.tif.*floating-point numbers, whose range no file states"):
        load(tmp_path / "a.tif")


def test_bytes_are_read_as_their_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, 0)
    assert decode_bytes(path.read_bytes(), "in a shard").tobytes() == decode(path).tobytes()
    for data, reason in ((b"", r"is empty \(0 bytes\)"), (path.read_bytes()[:40], "could not be read as an image")):
        with pytest.raises(UnreadableImage, match=f"^in a shard {reason}"):
            decode_bytes(data, "in a shard")
