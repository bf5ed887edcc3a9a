"""A pack that was stopped goes on to the same bits; its members can go on alone, and separate runs as a pack."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.packed.runs import assert_same_run, prepare, rows, three, weights
from tests.runs import DROPOUT
from vpeft.packed import train_together
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.tasks.classification import Classification
from vpeft.tasks.resuming import Interrupted, StepSeeds

STATEFUL = {"ema": 0.8, "selection": "best_val", "epochs": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def uninterrupted(root, tmp_path_factory):
    return rows(train_together(make(root, tmp_path_factory.mktemp("uninterrupted"))))


def make(root, output, resume=False):
    return three(root, output, DROPOUT, resume=resume, **STATEFUL)


def send(monkeypatch, number, position, epoch, batch):
    """A signal, while the member at `position` starts a batch."""
    start = StepSeeds.on_train_batch_start

    def on_train_batch_start(self, trainer, module, data, index):
        start(self, trainer, module, data, index)
        if threading.current_thread().name == f"member {position}" and (trainer.current_epoch, index) == (epoch, batch):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(StepSeeds, "on_train_batch_start", on_train_batch_start)


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert all(ours[part] == theirs[part] for part in ("test", "val", "selection", "packed"))
        for name, tensor in weights(theirs).items():
            assert torch.equal(weights(ours)[name], tensor), name


@pytest.mark.parametrize(
    ("number", "position", "epoch", "batch"),
    [
        (signal.SIGINT, 0, 0, 0),
        (signal.SIGTERM, 1, 1, 2),
        (signal.SIGUSR1, 0, 0, 5),  # the last batch of an epoch of two members, and not of the third
    ],
)
def test_signals(root, tmp_path, uninterrupted, monkeypatch, capsys, number, position, epoch, batch):
    with monkeypatch.context() as patch:
        send(patch, number, position, epoch, batch)
        with pytest.raises(Interrupted) as stopped:
            train_together(make(root, tmp_path))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    said = capsys.readouterr().err
    for name in ("colors-0", "shades-1", "colors-2"):
        assert f"All is in {tmp_path}/{name}/last.ckpt; the same command with --train.resume true" in said
    assert not (tmp_path / "results.jsonl").exists()
    found = rows(train_together(make(root, tmp_path, resume=True)))
    assert_equal(found, uninterrupted)
    assert sorted(row["id"] for row in read_rows(tmp_path / "results.jsonl")) == sorted(row["id"] for row in found)
    assert not list(tmp_path.glob("*-2-2"))


def test_a_stopped_pack_goes_on_as_separate_runs(root, tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, 0, 1, 1)
        with pytest.raises(Interrupted):
            train_together(make(root, tmp_path))
    for config, theirs in zip(make(root, tmp_path, resume=True), uninterrupted, strict=True):
        ours = train(config)
        assert "packed" not in ours
        assert_same_run(ours, theirs)


def test_separate_runs_go_on_as_a_pack(root, tmp_path, uninterrupted, monkeypatch):
    first, second, third = make(root, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tests.packed.test_resume.threading.current_thread", lambda: threading.main_thread())
        patch.setattr(threading.main_thread(), "name", "member 0")
        send(patch, signal.SIGTERM, 0, 1, 1)
        for config in (first, second):
            with pytest.raises(Interrupted):
                train(config)
    train(third)
    resumed = make(root, tmp_path, resume=True)
    found = rows(train_together(resumed))
    for ours, theirs in zip(found, uninterrupted, strict=True):
        assert_same_run(ours, theirs)
    assert ["packed" in row for row in found] == [True, True, False], "the third had its row"


def test_a_pack_stopped_in_a_test_is_tested_again(root, tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        step = Classification.test_step

        def test_step(self, batch, index):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, index)

        patch.setattr(Classification, "test_step", test_step)
        with pytest.raises(Interrupted) as stopped:
            train_together(make(root, tmp_path))
    assert stopped.value.code == 143
    assert_equal(rows(train_together(make(root, tmp_path, resume=True))), uninterrupted)


def test_a_finished_pack_returns_its_rows(root, uninterrupted, monkeypatch):
    output = Path(uninterrupted[0]["folder"]).parent
    monkeypatch.setattr("vpeft.packed.together._assemble", lambda configs: 1 / 0)
    found = rows(train_together(make(root, output, resume=True)))
    assert found == [json.loads(json.dumps(row)) for row in uninterrupted]


def test_a_failed_member_is_tried_again_alone(root, tmp_path, monkeypatch):
    configs = three(root, tmp_path, {"name": "ssf"}, epochs=1)
    with monkeypatch.context() as patch:
        step = Classification.training_step

        def training_step(self, batch, index):
            if len(self.classes) == 2:
                raise OSError("a disk is gone")
            return step(self, batch, index)

        patch.setattr(Classification, "training_step", training_step)
        first, second, third = train_together(configs)
    assert isinstance(second, OSError)
    resumed = [dataclasses.replace(c, train=dataclasses.replace(c.train, resume=True)) for c in configs]
    again = rows(train_together(resumed))
    assert [again[0]["id"], again[2]["id"]] == [first["id"], third["id"]]
    assert again[1]["task"] == "shades"
