"""tools/segment.py on a small SAN, and the pictures it makes."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.dense.clips import SIDE, small_clip, small_san, words
from vpeft.dense import san_weights
from vpeft.dense.openvocab_schema import SANConfig
from vpeft.segment import overlay, parse_classes, shares


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The published model is a small one here; its weights are a file."""
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vpeft.backbones.load_open_clip.whole", lambda *_: (small_clip(), words))
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in SIDE.items()}
    monkeypatch.setitem(san_weights.MODELS, "san_vit_b16", SANConfig(taps=[0, 1, 2], **options))
    weights = tmp_path / "san.safetensors"
    save_file({name: tensor.clone() for name, tensor in small_san().delta().items()}, weights)
    return weights


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_it_writes_a_picture_with_a_legend_and_prints_shares(tool, small, photo, tmp_path):
    out = tmp_path / "out.png"
    words = ["--classes", "cat, dog", "--weights", small, "--others", "none", "-o", out]
    ended = tool("segment", photo, *words, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    *lines, last = ended.out.splitlines()
    assert last == str(out)
    assert [line.split()[-1] for line in lines] == ["cat", "dog", "other"]
    assert lines[-1].split()[0] == "0.0%"
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 90
        assert picture.height > 60


def test_the_name_of_the_picture_is_made_from_the_images(tool, small, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool("segment", photo, "--classes", "cat", "--weights", small, "--device", "cpu").code == 0
    assert (tmp_path / "photo_segmented.png").is_file()


def test_without_weights_it_refuses_and_says_where_they_are(tool, small, photo):
    ended = tool("segment", photo, "--classes", "cat")
    assert ended.code == 2
    assert "Download san_vit_b_16.pth from https://huggingface.co/Mendel192/san" in ended.err
    assert "random weights" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", ""], "The list of classes is empty"),
        (["--classes", "cat, dog, Cat"], "'Cat' is named twice"),
        (["--classes", "cat,,dog"], "empty name"),
        (["--classes", "cat", "--model", "san_vit_b61"], "there is no SAN 'san_vit_b61'; did you mean 'san_vit_b16'"),
        (["--classes", "cat", "-o", "out.jpg"], "ends in .png"),
        (["--classes", "cat", "-o", "nowhere/out.png"], "there is no folder nowhere"),
        (["--classes", "cat", "--weights", "gone.safetensors"], "There is no weights file gone.safetensors"),
        ([], "the following arguments are required: --classes"),
    ],
)
def test_wrong_words_are_one_sentence(tool, small, photo, words, said):
    ended = tool("segment", photo, *words)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_an_image_that_is_none(tool, small, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    ended = tool("segment", tmp_path / "text.jpg", "--classes", "cat", "--weights", small)
    assert ended.code == 2
    assert "could not be read as an image" in ended.err


def test_classes_are_split_at_commas():
    assert parse_classes(" cat , potted plant,floor") == ["cat", "potted plant", "floor"]


def test_what_is_none_of_the_classes_is_left_greyish_and_named_other():
    image = Image.new("RGB", (40, 40), (200, 100, 0))
    labels = np.zeros((40, 40), np.int64)
    labels[:, 20:] = 2
    assert shares(labels, ["cat", "dog"]) == [("cat", 0.5), ("dog", 0.0), ("other", 0.5)]
    pixels = np.asarray(overlay(image, labels, ["cat", "dog"], opacity=0.6))
    assert pixels[0, 0].tolist() == [round(200 * 0.4 + 128 * 0.6), 40, 0]
    assert pixels[0, 30].tolist() == [round(200 * 0.8 + 128 * 0.2), round(100 * 0.8 + 128 * 0.2), 26]


def test_a_long_legend_takes_several_lines():
    names = [f"a class with a long name {i}" for i in range(9)]
    labels = np.arange(9).repeat(100).reshape(30, 30)
    assert overlay(Image.new("RGB", (30, 30)), labels, names).height >= 30 + 9 * 24
