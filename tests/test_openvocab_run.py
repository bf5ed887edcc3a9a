"""An open-vocabulary run from its YAML to weights that segment as what was trained."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data.masked_layouts import write_folder
from tests.dense.clips import SIDE, small_clip, words
from vpeft import run
from vpeft.config import ConfigError, parse, to_yaml
from vpeft.data.openvocab import resized
from vpeft.dense import openvocab_run, san_weights
from vpeft.results import read_rows
from vpeft.segment import Segmenter
from vpeft.tasks.openvocab import OpenVocab
from vpeft.tasks.resuming import Interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A YAML of a small SAN on a random CLIP, whose weights follow the seed, on two folders."""
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "vpeft.backbones.load_open_clip.whole", lambda name, pretrained, seed: (small_clip(seed=seed), words)
    )
    cities, fields = (
        write_folder(tmp_path / name, {"train": 6, "test": tests}, ((64, 80), (72, 64)))
        for name, tests in (("cities", 2), ("fields", 3))
    )

    def make(name: str = "config.yaml", output: str = "runs", **sections: dict) -> str:
        side = {key: list(value) if isinstance(value, tuple) else value for key, value in SIDE.items()}
        data = {"root": str(tmp_path), "train": str(cities), "tests": [str(cities), str(fields)], "crop": 64}
        data |= {"sizes": [64], "short_side": 64, "long_side": 128, "batch_size": 2, "workers": 0}
        tree = {
            "kind": "openvocab",
            "model": {"pretrained": "none", "taps": [0, 1, 2], **side},
            "data": data,
            "loss": {"points": 16},
            "optim": {"lr": 1e-3},
            "train": {"steps": 2, "val_every": 2, "accelerator": "cpu"},
            "output": str(tmp_path / output),
            "name": "run",
        }
        for section, options in sections.items():
            tree[section] |= options
        (tmp_path / name).write_text(yaml.safe_dump(tree))
        return str(tmp_path / name)

    return make


@pytest.fixture
def built(monkeypatch):
    """The modules that runs have built."""
    kept, original = [], openvocab_run.build

    def watch(config, training):
        task, data = original(config, training)
        kept.append(task)
        return task, data

    monkeypatch.setattr(openvocab_run, "build", watch)
    return kept


def test_saved_weights_segment_as_what_was_trained(write, built, tmp_path):
    config = parse([write()])
    row = run.train(config)
    folder = tmp_path / "runs/run"
    assert read_rows(tmp_path / "runs/results.jsonl") == [row]
    assert (row["kind"], row["task"], row["steps"]) == ("openvocab", "cities", 2)
    assert {name: found["images"] for name, found in row["test"].items()} == {"cities": 2, "fields": 3}
    for found in row["test"].values():
        assert 0 <= found["miou"] <= 1
        assert set(found["per_class"]) == {"sky", "road", "tree"}
    san = built[0].san
    counts = row["parameters"]
    assert sum(counts[part] for part in ("side", "positions", "background")) == sum(
        one.numel() for one in san.trained().values()
    )
    assert (counts["positions"], counts["background"]) == (17 * 32, 24)
    assert row["weights"]["start"] != row["weights"]["sha256"]

    weights = folder / "san.safetensors"
    assert {name for name, one in load_file(weights).items() if torch.equal(one, san.delta()[name])} == set(san.delta())
    manifest = san_weights.read_manifest(weights)
    assert manifest is not None
    assert manifest["sha256"] == row["weights"]["sha256"]
    assert manifest["result"]["test_miou"]["fields"] == row["test"]["fields"]["miou"]
    segmenter = Segmenter(weights=str(weights))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    mine = segmenter(image, ["road", "sky"], "none")

    with torch.inference_mode():
        trained = built[0].eval()(resized(image, 64, 128)[None], ["road", "sky"], (70, 90))[0]
    assert np.array_equal(mine, trained.numpy())

    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    assert {"test/cities/predictions", "test/fields/predictions"} <= set(tags["images"])
    table = events.Tensors("test/fields/iou/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| road |" in table
    assert f"**{row['test']['fields']['miou']:.1%}**" in table
    assert "parameters/text_summary" in tags["tensors"]
    assert {"val/cities/miou", "val/fields/miou", "final/fields/miou"} <= set(tags["scalars"])


def test_weights_on_another_clip_are_refused(write, tmp_path):
    run.train(parse([write()]))
    weights = tmp_path / "runs/run/san.safetensors"
    with pytest.raises(ValueError, match="was trained on other weights of ViT-B-16/openai than these"):
        run.train(parse([write(), "--seed", "1", "--model.weights", str(weights), "--train.steps", "0"]))


@pytest.mark.parametrize("stop_in_step", [2, 5], ids=["within an epoch", "at its end"])
def test_a_stopped_run_goes_on_to_the_same_bits(write, tmp_path, monkeypatch, stop_in_step):
    steps = {"train": {"steps": 7, "val_every": 4}}
    whole = run.train(parse([write("whole.yaml", "whole", **steps)]))
    original, count = OpenVocab.training_step, {"steps": 0}

    def stopping(self, batch, batch_idx):
        count["steps"] += 1
        if count["steps"] == stop_in_step + 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    file = write("parts.yaml", "parts", **steps)
    with monkeypatch.context() as patch:
        patch.setattr(OpenVocab, "training_step", stopping)
        with pytest.raises(Interrupted):
            run.train(parse([file]))
    resumed = run.train(parse([file, "--train.resume", "true"]))
    assert resumed["test"] == whole["test"]
    assert resumed["weights"] == whole["weights"]
    assert run.train(parse([file, "--train.resume", "true"])) == resumed


def test_a_run_stopped_in_its_test_is_only_tested_again(write, monkeypatch):
    whole = run.train(parse([write("whole.yaml", "whole")]))
    file = write("parts.yaml", "parts")
    with monkeypatch.context() as patch:
        patch.setattr(OpenVocab, "on_test_epoch_start", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run.train(parse([file]))
        patch.undo()
    resumed = run.train(parse([file, "--train.resume", "true"]))
    assert (resumed["test"], resumed["weights"]) == (whole["test"], whole["weights"])


def test_weights_are_evaluated_alone_and_without_training_images(write, tmp_path):
    trained = run.train(parse([write()]))
    weights = str(tmp_path / "runs/run/san.safetensors")
    words = ["--train.steps", "0", "--model.weights", weights, "--data.train", "nowhere", "--name", "again"]
    row = run.train(parse([write(), *words]))
    assert row["test"] == trained["test"]
    assert (row["task"], row["steps"]) == ("cities+fields", 0)
    assert row["weights"]["sha256"] == row["weights"]["start"] == trained["weights"]["sha256"]
    assert not (tmp_path / "runs/again/san.safetensors").exists()
    assert (tmp_path / "runs/again/result.json").is_file()


def test_a_loss_that_is_no_number_ends_the_run_with_advice(write, monkeypatch):
    monkeypatch.setattr(OpenVocab, "training_step", lambda self, *_: self.san.side.queries.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"not a finite number in optimiser step 1 of 2 .* optim\.clip"):
        run.train(parse([write()]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--train.steps", "0"],
            "command line: train.steps 0 evaluates trained weights, and there are none",
        ),
        (["--data.crop", "100"], "command line: data.crop must be a multiple of 32, not 100; take 128"),
        (["--data.tests", "[]"], "command line: data.tests is empty"),
        (["--train.epochs", "3"], "command line: there is no 'train.epochs'"),
        (["--method.name", "lora"], "command line: there is no 'method'"),
        (["--model.tap", "[0]"], r"command line: there is no 'model.tap'; did you mean 'model.taps'\?"),
        (["--optim.lr", "0"], "command line: optim.lr must be above 0, not 0"),
        (["--optim.clip", "0"], "command line: optim.clip must be above 0, not 0"),
        (["--train.val_every", "0"], "command line: train.val_every must be at least 1, not 0"),
        (["--name", "a/b"], "command line: name must be the name of one folder"),
        (["--train.precision", "16-mixed"], "train.precision 16-mixed needs a GPU"),
        (["--data.train", "coco_stuf171"], "There is no data set 'coco_stuf171'; did you mean"),
        (["--model.weights", "missing.safetensors"], "There is no weights file missing.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(write, tmp_path, words, sentence):
    with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=sentence) as error:
        run.train(parse([write(), *words]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_a_file_names_it_and_the_key(write):
    with pytest.raises(ConfigError, match=r"config\.yaml: data\.flip must be from 0 to 1, not 2"):
        parse([write(data={"flip": 2.0})])


@pytest.mark.parametrize("name", ["san_vit_b16", "san_vit_l14"])
def test_shipped_configs_parse_and_run_again_as_they_are_saved(name, tmp_path):
    config = parse([str(ROOT / f"configs/openvocab/{name}.yaml"), "--data.root", "DIR"])
    assert config.data.root == Path("DIR")
    (tmp_path / "saved.yaml").write_text(to_yaml(config))
    assert parse([str(tmp_path / "saved.yaml")]) == config
