"""A run that was stopped and resumed ends with the same bits as one that was not."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fuzz.reader import signed
from tests.runs import DROPOUT, tiny_config, write_images
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.tasks import checkpoint_file
from vpeft.tasks.classification import Classification
from vpeft.tasks.resuming import AtomicCheckpoints, StepSeeds

ROOT = Path(__file__).parents[1]
# Everything with a state: dropout, an average, a best epoch, summed gradients, drop-path, a head with buffers.
STATEFUL = {"ema": 0.8, "selection": "best_val", "accumulate": 2, "epochs": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def make_config(images, output, **train):
    config = tiny_config(images, output, DROPOUT, **(STATEFUL | train))
    config.drop_path, config.head.batch_norm, config.data.augment = 0.2, True, "flip"
    return config


def resumed(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    config = make_config(images, tmp_path_factory.mktemp("uninterrupted"))
    return train(config), load_file(config.output / "run" / "adapter.safetensors")


def assert_equal_to(uninterrupted, config, row):
    expected, weights = uninterrupted
    for part in ("test", "val", "selection", "epochs", "parameters"):
        assert row[part] == expected[part]
    found = load_file(config.output / "run" / "adapter.safetensors")
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    rows = read_rows(config.output / "results.jsonl")
    assert [known["id"] for known in rows] == [row["id"]]
    assert not (config.output / "run-2").exists()


def test_kill_9(images, tmp_path, uninterrupted):
    config = make_config(images, tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "tools/train.py", str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    time.sleep(0.05)  # somewhere in the third epoch, or while the checkpoint before it is written
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "results.jsonl").exists()
    assert_equal_to(uninterrupted, config, train(resumed(config)))


@pytest.mark.parametrize(
    ("number", "epoch", "batch", "where"),
    [
        (signal.SIGINT, 1, 1, "after batch 2 of epoch 2"),
        (signal.SIGTERM, 1, 2, "after batch 4 of epoch 2"),  # the third batch is half of a step
        (signal.SIGTERM, 2, 5, "after epoch 3"),
        (signal.SIGINT, 0, 0, "after batch 2 of epoch 1"),
    ],
)
def test_signals(images, tmp_path, uninterrupted, monkeypatch, capsys, number, epoch, batch, where):
    config = make_config(images, tmp_path)
    with monkeypatch.context() as patch:
        start = StepSeeds.on_train_batch_start

        def send(self, trainer, module, data, index):
            start(self, trainer, module, data, index)
            if (trainer.current_epoch, index) == (epoch, batch):
                os.kill(os.getpid(), number)

        patch.setattr(StepSeeds, "on_train_batch_start", send)
        with pytest.raises(SystemExit) as stopped:
            train(config)
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"Stopped by {number.name} {where}. All is in {tmp_path}/run/last.ckpt; the same command with" in said
    assert "--train.resume true goes on from there." in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert_equal_to(uninterrupted, config, train(resumed(config)))


def test_a_run_stopped_in_its_test_is_tested_again(images, tmp_path, uninterrupted, monkeypatch):
    config = make_config(images, tmp_path)
    with monkeypatch.context() as patch:
        step = Classification.test_step
        patch.setattr(
            Classification,
            "test_step",
            lambda self, batch, index: (os.kill(os.getpid(), signal.SIGTERM), step(self, batch, index))[1],
        )
        with pytest.raises(SystemExit) as stopped:
            train(config)
    assert stopped.value.code == 143
    assert not (tmp_path / "results.jsonl").exists()
    assert_equal_to(uninterrupted, config, train(resumed(config)))


def test_resume_without_a_checkpoint_starts_in_the_same_folder(images, tmp_path, uninterrupted, monkeypatch):
    config = make_config(images, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(StepSeeds, "on_train_batch_start", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert_equal_to(uninterrupted, config, train(resumed(config)))


def train_without_end(config, monkeypatch):
    """Train to the last checkpoint and stop before there is an adapter."""
    with monkeypatch.context() as patch:
        patch.setattr("vpeft.run.save_adapter", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)


def test_an_unfinished_run_is_left_as_it_is_unless_asked(images, tmp_path, monkeypatch, capsys):
    config = make_config(images, tmp_path, epochs=1)
    train_without_end(config, monkeypatch)
    before, first = (tmp_path / "run" / "last.ckpt").read_bytes(), tmp_path / "run"
    assert train(config)["folder"].endswith("run-2")
    assert (first / "last.ckpt").read_bytes() == before
    assert (
        f"{first} is unfinished and is left as it is. From now on --train.resume true goes on with {first}-2, and with "
        f"{first} once that is finished or removed."
    ) in capsys.readouterr().out
    assert train(resumed(config))["folder"] == str(first), "as was said"
    train(dataclasses.replace(config, seed=1))
    assert "is unfinished" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"x" * 5000])
def test_a_checkpoint_that_somebody_made_is_refused_in_a_sentence(images, tmp_path, monkeypatch, content):
    config = make_config(images, tmp_path, epochs=1)
    train_without_end(config, monkeypatch)
    (tmp_path / "run" / "last.ckpt").write_bytes(signed(content))
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint of a run \(.*Put back a copy of it"):
        train(resumed(config))


@pytest.mark.parametrize(
    "error", [PermissionError("no"), MemoryError(), RuntimeError("unable to mmap: Cannot allocate memory")]
)
def test_what_the_machine_lacks_is_not_the_fault_of_a_checkpoint(tmp_path, monkeypatch, error):
    def load(*given, **named):
        raise error

    checkpoint_file.write(tmp_path / "last.ckpt", {})
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)) as raised:
        checkpoint_file.read(tmp_path / "last.ckpt")
    assert raised.value is error


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path, writer = tmp_path / "last.ckpt", AtomicCheckpoints()
    writer.save_checkpoint({"epoch": 1}, path)

    def full(self, data):
        with self.open("wb") as file:
            file.write(bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"last.ckpt could not be written: No space left on device"):
        writer.save_checkpoint({"epoch": 2}, path)
    assert writer.load_checkpoint(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
