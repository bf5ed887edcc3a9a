"""Every member of a pack gets what a run of its own writes, with its numbers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.packed.runs import assert_close, assert_same_run, prepare, rows, three, weights
from tests.runs import DROPOUT
from vpeft.checkpoint import load_adapter
from vpeft.config import OptimConfig
from vpeft.data.cache import Images
from vpeft.packed import train_together
from vpeft.packed.pack import Seat
from vpeft.results import read_rows
from vpeft.run import train

# An average, a best epoch, summed gradients, clipping.
STATEFUL = {"ema": 0.8, "selection": "best_val", "accumulate": 2, "clip": 0.5}
METHODS = {
    "dropout": (DROPOUT, STATEFUL),
    "selective": ([{"name": "bitfit"}], {"epochs": 2}),
    "penalty and steps": ({"name": "adalora", "rank": 4, "target_rank": 2}, {"epochs": 2}),
    "looks at the images first": ({"name": "dam_vp", "prompts": 2, "size": 3}, {"epochs": 2}),
    "nothing but heads": ({"name": "linear"}, {"epochs": 2}),
    "bf16": ({"name": "adaptformer", "bottleneck": 4}, {"precision": "bf16-mixed", "epochs": 1}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("packed"))


def with_batch_norm(configs):
    for config in configs:
        config.head.batch_norm = True
    return configs


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bf16"])
def test_members_are_as_runs_of_their_own(root, tmp_path, name):
    method, settings = METHODS[name]
    make = with_batch_norm if name == "dropout" else list
    apart = [train(config) for config in make(three(root, tmp_path / "apart", method, **settings))]
    together = rows(train_together(make(three(root, tmp_path / "together", method, **settings))))
    for position, (ours, theirs) in enumerate(zip(together, apart, strict=True)):
        assert_same_run(ours, theirs)
        assert set(ours) - set(theirs) == {"packed"}
        assert ours["packed"] == {"members": 3, "position": position, "shared": ["time", "memory"]}
        assert_same_folder(Path(ours["folder"]), Path(theirs["folder"]))
        assert json.loads((Path(ours["folder"]) / "result.json").read_text()) == json.loads(json.dumps(ours))
    written = read_rows(tmp_path / "together" / "results.jsonl")
    assert sorted(row["id"] for row in written) == sorted(row["id"] for row in together)


def assert_same_folder(ours, theirs):
    """Files, settings, curves and logits."""
    found, expected = ({file.name for file in folder.iterdir()} for folder in (ours, theirs))
    assert found == expected >= {"config.yaml", "run.json", "last.ckpt", "adapter.safetensors", "result.json"}
    assert (ours / "config.yaml").read_text().replace("together", "apart") == (theirs / "config.yaml").read_text()
    ours_curves, theirs_curves = curves(ours), curves(theirs)
    assert set(ours_curves) == set(theirs_curves) >= {"train/loss_epoch", "val/accuracy"}
    for tag, values in theirs_curves.items():
        if not tag.startswith("speed/") and tag not in ("final/step_seconds", "final/peak_memory_gib"):
            assert_close(dict(ours_curves[tag]), dict(values))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    logits = [load_adapter(folder / "adapter.safetensors")[0](images) for folder in (ours, theirs)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def curves(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_bf16_differs_by_its_rounding_alone(root, tmp_path):
    method, settings = METHODS["bf16"]
    apart = [train(config) for config in three(root, tmp_path / "apart", method, **settings)[:2]]
    together = rows(train_together(three(root, tmp_path / "together", method, **settings)[:2]))
    for ours, theirs in zip(together, apart, strict=True):
        assert ours["train"]["precision"] == "bf16-mixed"
        for name, tensor in weights(theirs).items():
            torch.testing.assert_close(weights(ours)[name], tensor, rtol=2e-3, atol=2e-3)


def test_lengths_may_differ_and_adamw_is_as_alone(root, tmp_path):
    def make(output):
        configs = three(root, output, {"name": "lora", "rank": 2, "dropout": 0.3}, val_every=2)
        for config, epochs in zip(configs, (2, 3, 4), strict=True):
            config.train.epochs = epochs
            config.optim = OptimConfig("adamw", config.optim.lr, weight_decay=0.1, warmup_epochs=0.5)
        configs[2].data.drop_last, configs[0].head.init = True, "zero"
        return configs

    apart = [train(config) for config in make(tmp_path / "apart")]
    for ours, theirs in zip(rows(train_together(make(tmp_path / "together"))), apart, strict=True):
        assert_same_run(ours, theirs)


def test_a_choice_of_settings_is_not_tested(root, tmp_path):
    apart = [train(config) for config in three(root, tmp_path / "apart", {"name": "ssf"}, epochs=2, test=False)]
    together = rows(train_together(three(root, tmp_path / "together", {"name": "ssf"}, epochs=2, test=False)))
    for ours, theirs in zip(together, apart, strict=True):
        assert ours["test"] is None
        assert_close(ours["val"], theirs["val"])
        assert not (Path(ours["folder"]) / "adapter.safetensors").exists()


def test_a_member_that_diverges_leaves_the_others_alone(root, tmp_path, capsys):
    def make(output):
        configs = three(root, output, DROPOUT)
        configs[1].optim.lr = 1e30
        return configs

    first, failed, last = train_together(make(tmp_path / "together"))
    assert isinstance(failed, FloatingPointError)
    assert "The loss is not a finite number in optimiser step" in str(failed)
    assert f"Member 1 of the pack failed: {failed}" in capsys.readouterr().err
    for ours, config in ((first, make(tmp_path / "apart")[0]), (last, make(tmp_path / "apart")[2])):
        assert_same_run(ours, train(config))
    assert len(read_rows(tmp_path / "together" / "results.jsonl")) == 2
    assert not (tmp_path / "together" / "shades-1" / "result.json").exists()


def test_an_error_of_the_pack_ends_its_members_and_no_more(root, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("vpeft.packed.joint.features", fail)
    outcomes = train_together(three(root, tmp_path, {"name": "ssf"}))
    assert [str(outcome) for outcome in outcomes] == ["out of memory"] * 3
    assert not (tmp_path / "results.jsonl").exists()


def test_further_fields_of_rows(root, tmp_path):
    configs = three(root, tmp_path, {"name": "ssf"}, epochs=1)[:2]
    found = rows(train_together(configs, [{"suite": {"member": "a"}}, {"suite": {"member": "b"}}]))
    assert [row["suite"]["member"] for row in found] == ["a", "b"]
    assert {row["task"]: row["suite"]["member"] for row in read_rows(tmp_path / "results.jsonl")} == {
        "colors": "a",
        "shades": "b",
    }


def test_files_are_read_once_and_weights_are_held_once(root, tmp_path, monkeypatch):
    read, held = [], []
    make, sit = Images.__init__, Seat.sit_down

    def note(self, split, *args, **kwargs):
        read.append(split.files[0].parents[1].name)
        make(self, split, *args, **kwargs)

    def look(self, run):
        held.append(self.tuned)
        sit(self, run)

    monkeypatch.setattr(Images, "__init__", note)
    monkeypatch.setattr(Seat, "sit_down", look)
    rows(train_together(three(root, tmp_path, {"name": "layernorm"}, epochs=1)))
    assert sorted(read) == ["colors"] * 3 + ["shades"] * 3, "train, val and test of two tasks"
    frozen = [{p.data_ptr() for p in tuned.parameters() if not p.requires_grad} for tuned in held]
    trained = [{p.data_ptr() for p in tuned.parameters() if p.requires_grad} for tuned in held]
    assert frozen[0] == frozen[1] == frozen[2]
    assert not (trained[0] & trained[1]) | (trained[1] & trained[2]) | (trained[0] & frozen[1])


def test_one_member_is_a_pack_too(root, tmp_path):
    config = three(root, tmp_path / "apart", DROPOUT, epochs=1)[0]
    (ours,) = rows(train_together([dataclasses.replace(config, output=tmp_path / "together")]))
    assert_same_run(ours, train(config))
    assert ours["packed"]["members"] == 1
