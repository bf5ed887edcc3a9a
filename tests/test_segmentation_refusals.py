"""What a segmentation run refuses, and when: before it trains, mostly before anything is loaded."""

from pathlib import Path

import pytest

from tests.segmentation_runs import own_data, writer
from vpeft import run
from vpeft.config import ConfigError, parse
from vpeft.merge import merge


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own_data(tmp_path)


@pytest.fixture
def write(tmp_path, root):
    return writer(tmp_path, root)


@pytest.mark.parametrize(
    ("options", "words", "sentence"),
    [
        ({"neck": "{name: lasst}"}, [], r"config.yaml: there is no neck 'lasst'; did you mean last\?"),
        ({"head": "{name: uper, widht: 3}"}, [], r"config.yaml: head uper has no 'widht'; did you mean 'width'\?"),
        ({}, ["--auxiliary.index", "x"], r"command line: auxiliary fcn: index is 'x', which is not a whole number"),
        (
            {"auxiliary": "[{name: fcn}, {name: fcm}]"},
            [],
            r"config.yaml: there is no auxiliary 'fcm'; did you mean fcn\?",
        ),
        (
            {"auxiliary": "[{name: fcn}, {name: setr}]"},
            ["--auxiliary.width", "4"],
            r"--auxiliary.width does not say which of the 2 entries of auxiliary in .*config.yaml it is for; give the "
            r"""whole list, as in --auxiliary '\[{"name": "fcn"}, {"name": "setr"}\]'""",
        ),
        ({"method": "{name: fishmask}"}, [], r"config.yaml: fishmask looks at images with one label each"),
        (
            {"neck": "{name: vit_adapter, regime: extractor}"},
            [],
            r"config.yaml: neck.regime extractor runs the backbone without a graph, so lora would not learn",
        ),
        (
            {"method": "{name: evp}"},
            [],
            r"config.yaml: evp shrinks the image within its prompt, and the labels would no",
        ),
        ({"method": "{name: ilm_vp}"}, [], r"config.yaml: ilm_vp shrinks the image within its prompt"),
        ({}, ["--inference.scales", "[]"], r"command line: inference.scales must be numbers above 0, not \[\]"),
        ({}, ["--head.kind", "linear"], r"command line: head linear_bn has no 'kind'"),
        ({}, ["--kind", "classification"], r"command line: kind must be one of segmentation, not 'classification'"),
        ({}, ["--data.split", "trainval"], r"config.yaml: train.selection best_val chooses on val"),
    ],
)
def test_a_mistake_stops_before_anything_is_loaded(write, options, words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse([write(**options), *words])


def test_an_unknown_kind_is_refused_with_near_ones(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("kind: segmentaton\n")
    with pytest.raises(ConfigError, match="there is no kind 'segmentaton'; did you mean 'segmentation'"):
        parse([str(file)])


@pytest.mark.parametrize("method", ["vqt", "lst"])
def test_what_acts_on_features_is_refused_beside_a_neck(write, method):
    config = parse([write(method=f"{{name: {method}}}")])
    with pytest.raises(ValueError, match="changes what is read from the last block as features, which a neck does not"):
        run.train(config)


def test_an_image_too_large_for_one_pass_is_refused_before_training(write, tmp_path):
    config = parse([write(), "--inference.mode", "whole"])
    with pytest.raises(
        ValueError, match=r"png is 64x80 pixels when it is evaluated, and inference.mode whole takes up"
    ):
        run.train(config)
    assert not (tmp_path / "runs/run/last.ckpt").exists()


@pytest.mark.parametrize(("size", "images"), [(1, 10), (3, 10), (9, 10)])
def test_a_last_batch_of_one_image_is_refused_before_training_where_a_map_is_pooled_to_a_cell(write, size, images):
    words = ["--data.batch_size", str(size), "--train.epochs", "1", "--optim.warmup_epochs", "0"]
    with pytest.raises(ValueError, match=rf"{images} images in batches of {size} the last has one; give another data"):
        run.train(parse([write(head="{name: uper, width: 8}"), *words]))
    if size == 9:
        run.train(parse([write(head="{name: uper, width: 8}"), *words, "--data.drop_last", "true"]))


def test_a_stride_that_leaves_gaps_is_refused_before_a_folder_is_made(write, tmp_path):
    with pytest.raises(ValueError, match=r"inference.stride is 65, and windows are 64x64 pixels"):
        run.train(parse([write(), "--inference.stride", "65"]))
    assert not (tmp_path / "runs").exists()


def test_what_has_a_neck_is_not_merged(write, tmp_path):
    run.train(parse([write(), "--train.epochs", "1", "--optim.warmup_epochs", "0"]))
    with pytest.raises(ValueError, match=r"of kind segmentation: its neck and heads have no place .* Use it as it is"):
        merge(tmp_path / "runs/run/adapter.safetensors", tmp_path / "merged.safetensors")


def test_an_entry_without_a_name_is_refused_with_its_key(write, tmp_path):
    file = Path(write())
    file.write_text(file.read_text().replace("{name: fcn, width: 8, index: 0}", "{width: 8}"))
    with pytest.raises(ConfigError, match=r"auxiliary is .*; it is written as a mapping with a name"):
        parse([str(file), "--auxiliary", "{width: 4}"])
