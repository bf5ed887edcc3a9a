"""The search from the supernet to the trained subnet, on noise."""

import dataclasses
import json
import os
import signal

import lightning.pytorch as L
import pytest
import torch

from tests.runs import tiny_config, write_images
from vpeft import run, search
from vpeft.config import Config, ConfigError, parse
from vpeft.data import ClassificationData
from vpeft.methods.noah import NOAH, Architecture
from vpeft.search_settings import SearchConfig
from vpeft.tasks.classification import Classification

SETTINGS = SearchConfig(
    budget=6000, epochs=2, lr=0.01, prompts=[1, 3], lora=[1, 2], adapter=[1, 4],
    generations=3, population=6, parents=2, mutations=2, crossovers=2,
)  # fmt: skip
NOAH_SPEC = {"name": "noah", "prompts": 3, "lora": 2, "adapter": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def make(images, output, method=None, **train) -> Config:
    return tiny_config(images, output, method or NOAH_SPEC, **{"epochs": 2, **train})


@pytest.fixture(scope="module")
def found(images, tmp_path_factory):
    """A whole search: its config, the file it wrote and how often the test split was read."""
    config = make(images, tmp_path_factory.mktemp("runs"))
    sampled, read = [], []
    patch = pytest.MonkeyPatch()
    sample, test = NOAH.sample, ClassificationData.test_dataloader
    patch.setattr(NOAH, "sample", lambda self, one=None: (sampled.append(one), sample(self, one))[1])
    patch.setattr(ClassificationData, "test_dataloader", lambda self: (read.append(1), test(self))[1])
    file = search.search(config, SETTINGS)
    patch.undo()
    return config, file, sampled, len(read)


def state(file):
    return json.loads((file.parent / "search.json").read_text())


def test_the_found_subnet_is_the_best_of_those_measured_and_within_the_budget(found):
    _, file, _, _ = found
    result = json.loads((file.parent / "result.json").read_text())
    measured = state(file)["measured"]
    assert result["val_accuracy"] == max(row["accuracy"] for row in measured)
    assert {**result["architecture"], "accuracy": result["val_accuracy"]} in measured
    assert 6 < len(measured) <= 18
    assert result["parameters"] <= 6000
    widths = parse([str(file)]).method
    assert {kind: widths[kind] for kind in ("prompts", "lora", "adapter")} == result["architecture"]
    text = file.read_text()
    assert f"python tools/train.py {file}" in text
    assert f"{result['parameters']:,} parameters" in text


def test_the_test_split_is_never_read_and_the_supernet_never_sees_val200(found):
    _, file, _, read = found
    assert read == 0
    assert parse([str(file.parent / "config.yaml")]).data.split == "train800"


def test_every_step_trains_a_random_subnet_and_evaluation_sees_the_whole(found):
    _, _, sampled, _ = found
    attached, *rest = sampled
    training, evolution = rest[:14], rest[14:]
    assert attached is None
    assert [index for index, one in enumerate(training) if one is None] == [6, 13]  # after six steps of each epoch
    drawn = [one for one in training if one]
    assert len(set(drawn)) > 8
    assert all(one is not None for one in evolution)


def test_the_subnet_trains_to_a_row_and_an_adapter_of_its_size(found):
    _, file, _, _ = found
    result = json.loads((file.parent / "result.json").read_text())
    row = run.train(parse([str(file)]))
    assert row["parameters"]["method"] == result["parameters"]
    assert row["method"][0]["lora"] == result["architecture"]["lora"]
    assert (file.parent.parent / "run" / "adapter.safetensors").exists()


def test_a_finished_search_is_not_searched_again(found, capsys):
    config, file, _, _ = found
    before = state(file)
    again = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    assert search.search(again, SETTINGS) == file
    assert "is finished already" in capsys.readouterr().out
    assert state(file) == before


@pytest.mark.parametrize("stop_in", ["supernet", "evolution"])
def test_a_stopped_search_goes_on_to_the_same_end(found, images, tmp_path, monkeypatch, capsys, stop_in):
    _, file, _, _ = found
    count = [0]

    def interrupt(at):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGINT)

    if stop_in == "supernet":
        step = Classification.training_step
        patched = lambda self, batch, index: (interrupt(8), step(self, batch, index))[1]  # noqa: E731
        monkeypatch.setattr(Classification, "training_step", patched)
        ends = SystemExit
    else:
        measure = search.Fitness.__call__
        monkeypatch.setattr(search.Fitness, "__call__", lambda self, one: (interrupt(9), measure(self, one))[1])
        ends = KeyboardInterrupt
    with pytest.raises(ends):
        search.search(make(images, tmp_path), SETTINGS)
    assert "--train.resume true goes on from there" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/subnet.yaml"))
    again = search.search(make(images, tmp_path, resume=True), SETTINGS)
    assert state(again) == state(file)
    assert again.parent == tmp_path / "run-search"


def test_a_search_is_not_resumed_under_other_settings(found):
    config, *_ = found
    again = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    with pytest.raises(ConfigError, match=r"search.budget was 6000 and is 5000\. Give it the settings in"):
        search.search(again, dataclasses.replace(SETTINGS, budget=5000))


def test_what_cannot_be_searched_is_refused_before_anything_is_written(images, tmp_path):
    def refuse(message, method=None, settings=SETTINGS, **train):
        with pytest.raises(ValueError, match=message):
            search.search(make(images, tmp_path, method, **train), settings)
        assert not list(tmp_path.iterdir())

    changed = dataclasses.replace
    refuse("for method noah alone, not lora", {"name": "lora"})
    refuse("for method noah alone, not noah and lora", [NOAH_SPEC, {"name": "lora"}])
    refuse("train.devices 1", devices=2)
    refuse("search.budget is 10 parameters and the smallest architecture", settings=changed(SETTINGS, budget=10))
    refuse("search.depths must be among the", settings=changed(SETTINGS, depths=[99]))
    config = make(images, tmp_path)
    config.optim.warmup_epochs = 5
    with pytest.raises(ConfigError, match=r"warmup_epochs is 5 and search\.epochs is 2"):
        search.search(config, SETTINGS)


def test_a_subnet_of_another_depth_is_refused_with_what_to_do(found):
    _, file, _, _ = found
    config = parse([str(file)])
    config.method["prompts"] = [1, 1, 1]
    with pytest.raises(ValueError, match=r"^noah: prompts has 3 widths and .* an architecture is for the depth"):
        run.train(config)


def test_depths_are_the_quarters_of_the_backbone():
    assert search.search_space(SETTINGS, 12).depths == (3, 6, 9, 12)
    assert search.search_space(SETTINGS, 2).depths == (1, 2)
    assert search.search_space(dataclasses.replace(SETTINGS, depths=[2, 1, 2]), 2).depths == (1, 2)


def test_fitness_is_the_accuracy_on_val200_with_the_slices(images, tmp_path):
    config = run.complete(make(images, tmp_path))
    job = run.assemble(config)
    task, data = job.task, job.data
    data.setup()
    fitness = search.Fitness(task, data, L.Trainer(accelerator="cpu", logger=False))
    noah = task.tuned.methods[0]
    blocks = len(noah.cells)
    one = Architecture((1,) + (0,) * (blocks - 1), (2,) * blocks, (0,) * blocks)
    accuracy = fitness(one)
    noah.sample(one)
    (batches,) = [list(data.val_dataloader())]
    with torch.no_grad():
        right = sum(int((task(b["image"]).argmax(1) == b["label"]).sum()) for b in batches)
    assert accuracy == right / 12
