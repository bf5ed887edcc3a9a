from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.data.images import Look, Pictures, padded, read
from mllm.sample import Held, Stored
from vpeft.data.images import UnreadableImage, load_image

NO_LIMIT = 1 << 40


def picture(seed: int, size: tuple[int, int] = (6, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def as_bytes(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def write(folder: Path, count: int) -> list[Path]:
    for i in range(count):
        picture(i).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(count)]


def test_padding_puts_the_image_in_the_middle_of_a_square() -> None:
    image = picture(0, (6, 10))
    square = np.asarray(padded(image, (98, 98), (9, 8, 7)))
    assert square.shape == (10, 10, 3)
    assert np.array_equal(square[2:8], np.asarray(image))
    assert (square[[0, 1, 8, 9]] == (9, 8, 7)).all()
    upright = np.asarray(padded(picture(0, (10, 7)), (98, 98), (9, 8, 7)))
    assert (upright[:, [0, 8, 9]] == (9, 8, 7)).all()
    assert np.array_equal(upright[:, 1:8], np.asarray(picture(0, (10, 7))))


def test_padding_follows_the_shape_of_the_input() -> None:
    assert padded(picture(0, (6, 10)), (30, 20), (0, 0, 0)).size == (10, 15)
    assert padded(picture(0, (6, 4)), (30, 20), (0, 0, 0)).size == (4, 6)


def test_squash_and_crop_are_those_of_the_vision_package(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    for aspect in ("squash", "crop"):
        ours = Look((8, 8), aspect, "bilinear")(read(path))
        assert torch.equal(ours, load_image(path, (8, 8), aspect, "bilinear"))
    look = Look((20, 20), "pad", "bicubic", (1, 2, 3))
    assert look(read(path))[:, 0].tolist() == [[1] * 20, [2] * 20, [3] * 20]


def test_an_image_is_the_same_from_a_file_a_shard_and_memory(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    data = path.read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"before" + data + b"behind")
    stored = Stored("0.png", tmp_path / "shard.tar", 6, len(data))
    images = [read(source).tobytes() for source in (path, stored, Held("0.png", data))]
    assert images == [images[0]] * 3


@pytest.mark.parametrize("limit", [NO_LIMIT, 0])
def test_pictures_are_the_same_kept_or_not_and_each_is_there_once(tmp_path: Path, limit: int) -> None:
    files = write(tmp_path, 3)
    look = Look((8, 8))
    pictures = Pictures([*files, files[0], Held("x", as_bytes(picture(7)))], look, False, limit)
    assert (len(pictures), pictures.kept) == (4, limit > 0)
    taken = pictures.take(torch.tensor([3, pictures.position(files[1]), 3]))
    assert torch.equal(taken, torch.stack([look(picture(7)), look(picture(1)), look(picture(7))]))
    assert pictures.take(torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("limit", [NO_LIMIT, 0])
def test_a_missing_image_stops_or_is_skipped_before_training(tmp_path: Path, limit: int) -> None:
    files = write(tmp_path, 3)
    files[1].unlink()
    with pytest.raises(
        UnreadableImage, match=r"1\.png .*With data.on_missing skip, samples of such images are left out"
    ):
        Pictures(files, Look((8, 8)), False, limit)
    pictures = Pictures(files, Look((8, 8)), True, limit)
    assert pictures.failed.tolist() == [False, True, False]
    assert len(pictures.reasons) == 1
    assert pictures.take(torch.tensor([1])).eq(0).all()


def test_an_image_lost_later_stops_or_is_skipped_and_counted(tmp_path: Path) -> None:
    files = write(tmp_path, 3)
    strict, lenient = (Pictures(files, Look((8, 8)), skip, 0) for skip in (False, True))
    files[2].write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"2\.png could not be read as an image"):
        strict.take(torch.tensor([0, 2]))
    assert lenient.take(torch.tensor([0, 2]))[1].eq(0).all()
    assert lenient.failed.tolist() == [False, False, True]


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.tar could not be read"):
        read(Stored("0.png", tmp_path / "gone.tar", 0, 5))
    with pytest.raises(UnreadableImage, match=r"gone\.tar is missing"):
        Pictures([Stored("0.png", tmp_path / "gone.tar", 0, 5)], Look((8, 8)), False, 0)
    (tmp_path / "short.tar").write_bytes(b"abc")
    with pytest.raises(UnreadableImage, match=r"short\.tar, 0\.png could not be read as an image"):
        read(Stored("0.png", tmp_path / "short.tar", 0, 3))
