"""A first stage from its configuration to its adapter, row and second stage; stopped, resumed, in two processes."""

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm import run
from mllm.blip2.adapter import load
from mllm.blip2.schema import Blip2Config
from mllm.blip2.task import Pretraining
from tests.mllm.blip2.runs import config, write
from vpeft.config import parse, to_yaml
from vpeft.results import read_rows
from vpeft.schema import ConfigError
from vpeft.tasks.resuming import Interrupted

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs") / "colours", 64)


def test_images_find_their_captions_after_training_and_those_of_others_do_not(folder, tmp_path, monkeypatch):
    logged = set()
    log_dict = Pretraining.log_dict
    monkeypatch.setattr(
        Pretraining, "log_dict", lambda self, values, **more: logged.update(values) or log_dict(self, values, **more)
    )
    settings = config(folder, tmp_path, steps=100)
    settings.connector["dim"] = 128
    settings.data.batch_size = 16
    row = run.train(settings)
    test = row["test"]
    assert test["itc_image_r1"] > 0.9
    assert test["itm_text_r1"] > 0.9
    assert test["shuffled_itc_image_r1"] < 0.4
    assert test["shuffled_itg"] > 2 * test["itg"]
    assert test["chance_image"] == pytest.approx(2 / 16)
    assert test["score"] == pytest.approx((test["itm_image_r1"] + test["itm_text_r1"]) / 2)
    assert {"train/itc", "train/itm", "train/itg"} <= logged
    assert row["parameters"]["vision"] == 0
    assert row["connector"]["vocab"] == 15
    assert (row["data"]["captions"], row["data"]["cut"]) == (16, 0)
    assert row["loss"]["terms"] == ["itc", "itm", "itg"]
    model, words, manifest = load(tmp_path / "run/adapter.safetensors")
    assert manifest["result"]["test"]["score"] == test["score"]
    assert words.max_length == 8
    assert model.connector.temperature.item() != pytest.approx(0.07)


@pytest.mark.parametrize("change", [{}, {"cache_features": True}])
def test_stopped_and_resumed_it_ends_with_the_same_bits(folder, tmp_path, change):
    whole, parts = (
        dataclasses.replace(config(folder, tmp_path / name, steps=6, val_every=3), **change) for name in ("one", "two")
    )
    expected = run.train(whole)
    step, seen = Pretraining.training_step, []

    def stopping(self, batch, index):
        seen.append(index)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "training_step", stopping)
        with pytest.raises(Interrupted):
            run.train(parts)
    row = run.train(dataclasses.replace(parts, train=dataclasses.replace(parts.train, resume=True)))
    assert (row["test"], row["val"]) == (expected["test"], expected["val"])
    one, two = (load_file(tmp_path / name / "run/adapter.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def lossy(output, monkeypatch, lost):
    """A run during whose training images of the test go."""
    own = write(output / "colours", 64)
    monkeypatch.setattr("mllm.blip2.data.memory_limit", lambda: 0)
    settings = config(own, output)
    settings.data.on_missing = "skip"
    settings.data.eval_batch_size = 2

    def lose(self):
        for i in lost:
            (own / f"test{i}.png").unlink(missing_ok=True)

    monkeypatch.setattr(Pretraining, "on_train_epoch_end", lose)
    return settings


def test_pairs_whose_images_are_lost_meanwhile_are_left_out_and_counted(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"test3\.png was lost"):
        row = run.train(lossy(tmp_path, monkeypatch, (3, 7)))
    assert (row["test"]["pairs"], row["test"]["lost"], row["images_lost"]) == (28, 4, 2)
    assert math.isfinite(row["test"]["loss"])


def test_nothing_left_to_evaluate_is_refused(tmp_path, monkeypatch):
    with (
        pytest.warns(UserWarning, match="was lost"),
        pytest.raises(ValueError, match="All images of test were lost during the run, so there is nothing to evaluate"),
    ):
        run.train(lossy(tmp_path, monkeypatch, range(16)))


def test_kept_features_change_nothing(folder, tmp_path):
    rows = [
        run.train(dataclasses.replace(config(folder, tmp_path / str(kept)), cache_features=kept))
        for kept in (False, True)
    ]
    assert rows[0]["test"] == pytest.approx(rows[1]["test"], abs=1e-5)


def test_a_method_in_the_tower_learns_too(folder, tmp_path):
    settings = dataclasses.replace(config(folder, tmp_path), method={"name": "lora", "rank": 2})
    row = run.train(settings)
    assert row["parameters"]["vision"] > 0
    found = {
        name: tensor for name, tensor in load_file(tmp_path / "run/adapter.safetensors").items() if "vision." in name
    }
    assert sum(tensor.numel() for tensor in found.values()) == row["parameters"]["vision"]
    assert all(tensor.any() for tensor in found.values())  # what starts at zero has moved


def test_two_processes_train_and_one_reports(folder, tmp_path):
    settings = config(folder, tmp_path, steps=3, devices=2, strategy="ddp")
    settings.data.batch_size = 4
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settings))
    done = subprocess.run(
        [sys.executable, "tools/train.py", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert row["device"]["processes"] == 2
    assert math.isfinite(row["test"]["loss"])
    assert row["test"]["chance_image"] == pytest.approx(2 / 16), "a pair in both shares counts once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.terms [itc, itx]", r"command line: loss\.terms has 'itx'; there are itc, itm, itg"),
        ("loss.terms [itm, itg]", r"loss\.terms must have itc"),
        ("loss.terms []", r"loss\.terms must have itc"),
        ("loss.temperature 0", r"loss\.temperature must be above 0"),
        ("loss.smoothing 1", r"loss\.smoothing must be from 0 to below 1"),
        ("loss.embed 0", r"loss\.embed must be at least 1"),
        ("candidates 0", r"candidates must be at least 1"),
        ("data.batch_size 1", r"data\.batch_size must be at least 2: a pair is told from the others"),
        ("data.pack true", r"data\.pack is of sequences with images in them"),
        ("data.max_length 600", r"data\.max_length is 600, and the Q-Former reads texts of up to 512 tokens"),
        ("data.task rendered", r"data\.task rendered has answers to questions, and kind blip2 learns from captions"),
        ("connector.name mlp", r"connector must be a qformer in kind blip2, not 'mlp'"),
        ("connector.token 3", r"connector qformer has no 'token'; did you mean 'tokens'\?"),
        ("connector.instructed true", r"connector\.instructed is of a Q-Former before a language model"),
        ("connector.vocab 99", r"connector\.vocab is of a Q-Former before a language model"),
        ("train.strategy fsdp", r"train\.strategy fsdp shares out a language model, and kind blip2 has none"),
        ("method.name lora", r"cache_features keeps what the frozen tower makes of an image, and lora changes that"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(change, message):
    key, value = change.split(" ", 1)
    with pytest.raises(ConfigError, match=message):
        parse([str(ROOT / "configs/mllm/blip2_stage1.yaml"), f"--{key}", value])


def test_the_shipped_recipe_is_the_papers():
    published = parse([str(ROOT / "configs/mllm/blip2_stage1.yaml"), "--data.root", "DIR"])
    assert isinstance(published, Blip2Config)
    assert published.train.steps is not None
    assert published.connector["tokens"] == 32
    assert (published.optim.lr, published.optim.weight_decay, published.optim.betas) == (1e-4, 0.05, [0.9, 0.98])
    assert published.train.steps * published.optim.warmup == 2000
    assert published.data.batch_size * 16 == 1680
    assert (published.loss.temperature, published.loss.smoothing, published.loss.embed) == (0.07, 0.1, 256)
    assert published.vision.layer == -2
    assert published.start == published.tokenizer == "hf:google-bert/bert-base-uncased"
    assert (published.data.augment, published.data.crop_scale) == ("crop_flip", [0.5, 1.0])


def test_the_shipped_recipe_of_lavis_is_that_of_its_file():
    published = parse([str(ROOT / "configs/mllm/blip2_stage1_lavis.yaml"), "--data.root", "DIR"])
    assert isinstance(published, Blip2Config)
    optim, train = published.optim, published.train
    assert (optim.lr, optim.min_lr * optim.lr, optim.weight_decay, optim.warmup) == (1e-4, 1e-5, 0.05, 5000)
    assert (train.epochs, train.devices, published.data.batch_size, published.seed) == (10, 16, 100, 42)
    assert (published.data.augment, published.start) == ("crop_flip", "hf:google-bert/bert-base-uncased")
