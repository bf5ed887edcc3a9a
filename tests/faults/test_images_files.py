"""Images of every kind, whole and damaged, mean the same to training, to prediction and to the multimodal readers."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.data.images import Look, Pictures, read
from mllm.sample import Held, Stored
from tests.adapters import save
from tests.faults.pictures import KINDS, RED, write_claim, write_kinds, write_rotations
from vpeft.data.images import MOST_PIXELS, UnreadableImage, decode, load_image, open_image, upright_size
from vpeft.data.masks import ClassTable, read_mask
from vpeft.predict import Classifier, predict
from vpeft.quiet import quieten
from vpeft.vtab1k import archives


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Classifier:
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save(path)
    return Classifier(path)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[Path, tuple[int, int, int]]:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_shows_its_colour(kinds, name):
    (path, colour), *_ = [(path, colour) for path, colour in kinds.items() if path.name == name]
    image = decode(path)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert image.getcolors() == [(64, colour)]


def test_every_reader_sees_the_same(kinds, classifier):
    for path, colour in kinds.items():
        level = torch.tensor(colour, dtype=torch.uint8)
        trained = load_image(path, (4, 4), "squash", "bilinear")
        assert (trained == level[:, None, None]).all(), path
        assert (classifier.load(path) == level[:, None, None]).all(), path
        for source in (path, Held(path.name, path.read_bytes()), Stored(path.name, path, 0, path.stat().st_size)):
            assert read(source).getcolors() == [(64, colour)], source
    pictures = Pictures(kinds, Look((4, 4)), skip=False, limit=1 << 20)
    expected = torch.tensor(list(kinds.values()), dtype=torch.uint8)
    assert torch.equal(pictures.take(torch.arange(len(kinds))), expected[:, :, None, None].expand(-1, -1, 4, 4))


def test_all_eight_rotations_of_a_camera_are_one_picture_to_training_and_to_prediction(tmp_path, classifier):
    first, *others = paths = write_rotations(tmp_path)
    for path in others:
        assert torch.equal(
            load_image(path, (8, 16), "squash", "bilinear"), load_image(first, (8, 16), "squash", "bilinear")
        )
        assert torch.equal(classifier.load(path), classifier.load(first))
        assert read(path).tobytes() == decode(first).tobytes()
        assert upright_size(path) == (8, 16)
    answers = {str(one.top) for one in predict(classifier, paths) if not isinstance(one, UnreadableImage)}
    assert len(answers) == 1
    assert decode(first).getpixel((0, 0)) == RED


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    table = ClassTable.of(["a", "b"])
    upright = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    Image.fromarray(upright).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "turned.png", exif=exif)
    assert (read_mask(tmp_path / "turned.png", table) == upright).all()
    assert upright_size(tmp_path / "turned.png") == (2, 3) == read_mask(tmp_path / "plain.png", table).shape


def damaged(folder: Path) -> dict[Path, str]:
    """Files that are no whole images, and what is said of each."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(noise).save(jpeg, "JPEG")
    whole = jpeg.getvalue()
    contents = {
        "empty.jpg": (b"", r"is empty \(0 bytes\)"),
        "half.jpg": (whole[: len(whole) // 2], "could not be read as an image .image file is truncated"),
        "almost.jpg": (whole[:-2], "could not be read as an image .image file is truncated"),
        "head.jpg": (whole[:20], "could not be read as an image"),
        "text.jpg": (b"<html>404</html>", "could not be read as an image .it is of no known format"),
        "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "it is of no known format"),
    }
    found = {}
    for name, (content, said) in contents.items():
        (folder / name).write_bytes(content)
        found[folder / name] = said
    write_claim(folder / "bomb.png", 40_000, 40_000)
    write_claim(folder / "large.png", 13_378, 13_378)
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(folder / "nan.tif")
    Image.fromarray(np.full((4, 4), np.inf, np.float32)).save(folder / "inf.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(folder / "wide.tif")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    too_large = r"has more than 178,956,970 pixels, the most that an image may have here; shrink it"
    no_file = "is a folder, a pipe or a device and no image file; rename or remove it"
    return found | {
        folder / "bomb.png": too_large,
        folder / "large.png": too_large,
        folder / "nan.tif": "floating-point numbers, whose range no file states",
        folder / "inf.tif": "floating-point numbers, whose range no file states",
        folder / "wide.tif": "32-bit integers, whose range no file states",
        folder / "folder.jpg": no_file,
        folder / "pipe.jpg": no_file,
        folder / "nowhere.jpg": "No such file or directory",
        folder / "loop.jpg": "Too many levels of symbolic links",
        folder / f"{'x' * 300}.jpg": "File name too long",
    }


def test_what_is_no_whole_image_is_one_sentence_to_every_reader(tmp_path, classifier):
    for path, said in damaged(tmp_path / "bad").items():
        with pytest.raises(UnreadableImage, match=said) as one:
            load_image(path, (4, 4), "squash", "bilinear")
        assert str(one.value).startswith(f"{path} ")
        assert str(one.value).endswith("remove it.")
        (answer,) = predict(classifier, [path])
        assert str(answer) == str(one.value)
        with pytest.raises(UnreadableImage) as other:
            read(path)
        assert str(other.value) == str(one.value)


def test_masks_are_held_to_the_same(tmp_path):
    for path, said in damaged(tmp_path / "bad").items():
        said = (
            "is no mask: its pixels are of the kind F"
            if "floating" in said
            else said.replace("read as an image", "read as a mask")
        )
        said = "has the id 70000" if "32-bit" in said else said
        with pytest.raises(ValueError, match=said):
            read_mask(path, ClassTable.of(["a", "b"]))


def test_a_bomb_in_an_archive_or_a_shard_is_a_sentence(tmp_path):
    write_claim(tmp_path / "bomb.png", 40_000, 40_000)
    data = (tmp_path / "bomb.png").read_bytes()
    with pytest.raises(ValueError, match=r"^a\.zip, bomb.png has more than 178,956,970 pixels"):
        archives.decode(data, "a.zip, bomb.png")
    with pytest.raises(UnreadableImage, match=r"^a\.tar, bomb.png has more than"):
        read(Held("a.tar, bomb.png", data))


def test_the_limit_holds_where_another_package_has_switched_off_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    write_claim(tmp_path / "bomb.png", 40_000, 40_000)
    with pytest.raises(UnreadableImage, match="has more than"):
        decode(tmp_path / "bomb.png")


def test_below_the_limit_there_is_no_warning(tmp_path):
    side = int(MOST_PIXELS**0.5)
    write_claim(tmp_path / "large.png", side, side)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quieten()
        with open_image(tmp_path / "large.png") as opened:
            assert opened.size == (side, side)
    assert not caught


def test_too_little_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fail(self, *args):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(
        MemoryError, match=r"too little memory left to decode .*a\.png; free some, or shrink the image\."
    ):
        decode(tmp_path / "a.png")
