"""A multimodal run from its configuration to an adapter that holds what was trained, and one row."""

import dataclasses
import json

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mllm import run
from mllm.adapter import load_adapter, read_manifest
from mllm.assistant import Assistant
from mllm.card import rendered
from mllm.data_schema import FilesConfig
from mllm.templates import FILE
from mllm.testing import open_data
from tests.mllm.data.files import write_talks
from tests.mllm.runs import LORA, tiny_config, watched, write_language
from vpeft.config import parse, to_yaml
from vpeft.results import read_rows
from vpeft.yaml_file import read_yaml


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def finished(language, tmp_path_factory):
    """A run with everything on, and the task that it trained."""
    config = tiny_config(
        language,
        tmp_path_factory.mktemp("finished"),
        method={"name": "lora", "rank": 2},
        train={"val_every": 4, "steps": 10},
        evaluation={"score": "exact", "samples": 6, "max_new_tokens": 2, "controls": True},
    )
    kept = []
    with watched("on_test_start", lambda task: kept.append(task)):
        row = run.train(config)
    return config, row, kept[0]


def test_the_adapter_holds_to_the_bit_what_was_trained(finished):
    config, row, task = finished
    model, manifest = load_adapter(config.output / "run/adapter.safetensors")
    trained, saved = task.model.delta(), model.delta()
    assert set(saved) == set(trained)
    assert all(torch.equal(saved[name], trained[name]) for name in trained)
    batch = next(iter(task._data.loader("test")))
    task.model.eval()
    with torch.no_grad():
        assert torch.equal(model(batch), task.model(batch))
    assert manifest["result"] == {"id": row["id"], "test": row["test"]}
    assert manifest["connector"] == row["connector"] == {"name": "mlp", "depth": 2}
    assert manifest["language_method"]["alpha"] == 32.0, "defaults are written out"


def test_one_row_says_what_was_trained_where_and_what_came_of_it(finished):
    config, row, task = finished
    assert read_rows(config.output / "results.jsonl") == [row]
    assert json.loads((config.output / "run/result.json").read_text()) == row
    assert (row["kind"], row["task"], row["steps"]) == ("mllm", "rendered", 10)
    counts = {name: sum(p.numel() for _, p in named) for name, named in task.model.components().items()}
    assert {name: row["parameters"][name] for name in counts} == counts
    assert counts["embeddings"] == 0 < min(counts[name] for name in ("vision", "connector", "language"))
    assert row["parameters"]["total"] == sum(p.numel() for p in task.model.parameters())
    assert row["placement"] == {name: len(found) for name, found in task.model.placement().items()}
    assert row["data"]["counts"] == {"train": 15, "val": 300, "test": 300, "held_out": 300}
    assert row["test"]["samples"] == 6
    assert all(0 <= row["test"][name] <= 1 for name in ("score", "shuffled", "blank"))
    assert 0 < row["test"]["loss"] < 20
    assert 0 < row["val"]["loss"] < 20, "of step 8"
    assert (
        row["language"]["weights"]["sha256"]
        == read_manifest(config.output / "run/adapter.safetensors")["language"]["weights"]["sha256"]
    )


def test_curves_are_drawn(finished):
    config, _, _ = finished
    events = EventAccumulator(str(config.output / "run/tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/words", "val/loss", "test/loss", "final/score"} <= tags
    assert {"lr/connector", "lr/language", "lr/vision"} <= tags
    assert len(events.Scalars("val/loss")) == 2


def test_a_resolved_configuration_runs_again_as_it_is(finished, tmp_path):
    config, _, _ = finished
    saved = config.output / "run/config.yaml"
    again = parse([str(saved)])
    assert again == run.complete(config)
    (tmp_path / "again.yaml").write_text(to_yaml(again))
    assert parse([str(tmp_path / "again.yaml")]) == again


def test_a_finished_run_is_not_run_again(finished, capsys):
    config, row, _ = finished
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    assert run.train(resumed) == row
    assert "is finished already; its row is returned as it is" in capsys.readouterr().out
    assert len(read_rows(config.output / "results.jsonl")) == 1


@pytest.mark.parametrize("checkpointing", [True, False])
def test_in_training_dropout_acts_and_layers_are_recomputed(language, tmp_path, checkpointing):
    """Of LoRA; the language model's own dropout is off, as is that of the tower."""
    calls, modes = [], []

    def look(task, batch, index):
        model = task.model
        if not calls:
            model.language.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(index))
        modes.append((model.language.model.layers[0].training, model.vision.backbone.training))
        with torch.no_grad():
            one, other = model.loss(batch), model.loss(batch)
            model.eval()
            assert model.loss(batch) == model.loss(batch)
            model.train()
        assert (one != other) == (task.global_step > 0), "B of LoRA is 0 at first"
        calls.clear()
        calls.append(index)

    config = tiny_config(
        language,
        tmp_path,
        language={"checkpointing": checkpointing},
        language_method=LORA | {"dropout": 0.5},
        train={"steps": 3, "val_every": 1},
        data={"count": 2},
    )
    seen = []
    with (
        watched("training_step", look),
        watched("on_before_optimizer_step", lambda *_: seen.append(len(calls) - 1)),
    ):
        run.train(config)
    assert seen == [1 + checkpointing] * 3, "forward, and once more in the backward pass"
    assert modes == [(True, False)] * 3, "after an evaluation too"


def test_nothing_of_the_language_models_own_is_dropped(tmp_path):
    own = write_language(tmp_path / "language", attention_dropout=0.5)
    losses = []

    def look(task, batch, index):
        with torch.no_grad():
            losses.append((task.model.training, float(task.model.loss(batch)), float(task.model.loss(batch))))

    with watched("training_step", look):
        run.train(tiny_config(own, tmp_path, language_method={"name": "frozen"}, train={"steps": 1}))
    ((training, one, other),) = losses
    assert training
    assert one == other


def test_samples_of_packed_rows_are_counted(language, tmp_path):
    sizes = []
    config = tiny_config(language, tmp_path, {"pack": True, "batch_size": 1, "count": 8}, train={"steps": 12})
    with watched("training_step", lambda task, batch, index: sizes.append((len(batch["index"]), len(batch["labels"])))):
        row = run.train(config)
    rows = row["data"]["rows"]
    assert sum(samples for samples, _ in sizes[:rows]) == 24
    assert max(samples for samples, _ in sizes) > 1
    assert {lines for _, lines in sizes} == {1}
    assert row["preprocessing"]["packed"]
    time = row["time"]
    seen = sum(samples for samples, _ in sizes[:rows])
    assert time["images_per_second"] * time["step_seconds"] * rows == pytest.approx(seen, rel=0.5)


def test_data_without_val_and_test_trains(language, tmp_path):
    write_talks(tmp_path / "data", 6)
    files = {"task": "talks", "root": tmp_path / "data", "files": FilesConfig(train=["talks.json"])}
    row = run.train(tiny_config(language, tmp_path, files, train={"steps": 2, "val_every": 1}))
    assert (row["test"], row["val"]) == ({}, None)
    assert read_manifest(tmp_path / "run/adapter.safetensors")["result"]["test"] == {}
    with pytest.raises(ValueError, match=r"evaluation\.score exact scores answers to test samples, and talks has none"):
        run.train(tiny_config(language, tmp_path, files, evaluation={"score": "exact"}))
    assert not (tmp_path / "run-2").exists()


def test_a_run_starts_from_an_earlier_adapter(language, finished, tmp_path, capsys):
    before, _, task = finished
    adapter = before.output / "run/adapter.safetensors"
    begun = []
    config = tiny_config(
        language,
        tmp_path,
        method={"name": "lora", "rank": 2},
        start=adapter,
        freeze_connector=True,
        train={"steps": 1},
    )
    with watched("on_fit_start", lambda task: begun.append({k: v.clone() for k, v in task.model.delta().items()})):
        row = run.train(config)
    trained = task.model.delta()
    assert all(torch.equal(begun[0][name], trained[name]) for name in trained)
    assert f"start: {adapter}: took connector mlp and what was trained in the vision tower and lora" in (
        capsys.readouterr().out
    )
    assert row["start"] == str(adapter)
    assert row["parameters"]["connector"] == 0
    model, _ = load_adapter(tmp_path / "run/adapter.safetensors")
    after = model.delta()
    kept = {name for name in after if torch.equal(after[name], trained[name])}
    assert kept == {name for name in after if name.startswith("connector.")}


def test_an_adapter_needs_no_template_file_any_more(language, tmp_path):
    file = tmp_path / "mine.yaml"
    entry = read_yaml(FILE)["bare"] | {"cue": " so", "system": "look ."}
    file.write_text(yaml.safe_dump({"mine": entry}))
    run.train(tiny_config(language, tmp_path, {"template": str(file)}, train={"steps": 1}))
    file.unlink()
    adapter = tmp_path / "run/adapter.safetensors"
    assistant = Assistant(adapter, device="cpu")
    assert vars(assistant.writing.template) == entry | {"name": "mine"}
    data = open_data(assistant, [], "test")
    assert rendered(data.samples("test")[0], data.writing).endswith(" so")
    other = Assistant(adapter, device="cpu", system="see .")
    assert vars(other.writing.template) == entry | {"name": "mine", "system": "see ."}
    changed = open_data(assistant, [("data.system", "see .")], "test").writing.template
    assert changed == other.writing.template
    with pytest.raises(ValueError, match=r"mine\.yaml: there is no such file"):
        open_data(assistant, [("data.template", str(file))], "test")


def test_a_loss_that_is_no_number_ends_the_run_with_advice(language, tmp_path, monkeypatch):
    monkeypatch.setattr("mllm.vlm.VLM.loss", lambda self, batch: self.merge(batch).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"not a finite number in optimiser step 1 of 7 .*--optim\.clip 1\.0"):
        run.train(tiny_config(language, tmp_path))
    assert not (tmp_path / "results.jsonl").exists()
