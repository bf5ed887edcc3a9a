"""Processes that write the same at the same time: a run has a folder and a row, and what is shared is made once."""

import dataclasses
import errno
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.places import textile, vtab_task  # noqa: F401  (fixtures)
from tests.faults.together import another, at_once
from tests.runs import tiny_config, write_images
from vpeft import holding, run_folder
from vpeft.backbones import embedded as weights
from vpeft.backbones.weights import content_hash
from vpeft.config import ConfigError
from vpeft.data import embedded, prepare, vtab
from vpeft.fetch import write_atomic
from vpeft.holding import held
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.run_folder import RunFolder
from vpeft.tasks.resuming import StepSeeds
from vpeft.vtab1k import export as export_module
from vpeft.vtab1k.export import export


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def resumed(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))


@pytest.fixture
def unfinished(images, tmp_path, monkeypatch):
    """The configuration of a run that died in its second epoch."""
    config = tiny_config(images, tmp_path / "out", {"name": "linear"}, epochs=2)
    start = StepSeeds.on_train_batch_start

    def die(self, trainer, module, batch, index):
        start(self, trainer, module, batch, index)
        if trainer.current_epoch == 1:
            raise KeyError("dead")

    with monkeypatch.context() as patch:
        patch.setattr(StepSeeds, "on_train_batch_start", die)
        with pytest.raises(KeyError, match="dead"):
            train(config)
    return config


def test_folders_that_are_made_at_once_under_one_name_are_different_ones(images, tmp_path):
    config = tiny_config(images, tmp_path)
    made = at_once(lambda: run_folder.create(config).path.name, count=6)
    assert sorted(made) == ["run", "run-2", "run-3", "run-4", "run-5", "run-6"]
    assert len({RunFolder(tmp_path / name, "").record["id"] for name in made}) == 6


def test_two_runs_at_once_under_one_name_are_two_runs(images, tmp_path):
    config = tiny_config(images, tmp_path, {"name": "linear"}, epochs=1)
    rows = at_once(lambda: dict(train(config)))
    assert sorted(os.path.basename(row["folder"]) for row in rows) == ["run", "run-2"]
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in read_rows(tmp_path / "results.jsonl"))
    one, other = (load_file(tmp_path / name / "adapter.safetensors") for name in ("run", "run-2"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_another_process_trains_is_not_gone_on_with(unfinished, monkeypatch):
    run = run_folder.find(unfinished)
    assert run is not None
    before = run.checkpoint.read_bytes()
    with another(lambda: held(run)) as process:
        with monkeypatch.context() as patch:
            patch.setattr(holding, "PATIENCE", 0.2)
            with pytest.raises(ConfigError, match=r"run is being trained by another process\. Wait for that one, or"):
                train(resumed(unfinished))
        assert run.checkpoint.read_bytes() == before
        process.kill()
        row = train(resumed(unfinished))  # the system has let go of it
    assert [known["id"] for known in read_rows(unfinished.output / "results.jsonl")] == [row["id"]]


def test_a_file_system_without_locks_is_said(unfinished, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(holding, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    row = train(resumed(unfinished))
    assert "run is on a file system without locks (flock): start no second process" in capsys.readouterr().err
    assert [known["id"] for known in read_rows(unfinished.output / "results.jsonl")] == [row["id"]]


def test_two_processes_that_go_on_with_one_run_finish_it_once(unfinished, tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "PATIENCE", 300.0)
    whole = dataclasses.replace(unfinished, output=tmp_path / "whole")
    train(whole)
    rows = at_once(lambda: dict(train(resumed(unfinished))))
    assert rows[0]["id"] == rows[1]["id"]
    assert rows[0]["test"] == rows[1]["test"]
    assert len(read_rows(unfinished.output / "results.jsonl")) == 1
    one, other = (load_file(config.output / "run" / "adapter.safetensors") for config in (unfinished, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_file_that_many_write_is_always_one_of_theirs(tmp_path):
    file = tmp_path / "file"

    def write():
        own = bytes([os.getpid() % 256]) * 100_000
        for _ in range(20):
            write_atomic(file, own)
            found = file.read_bytes()
            if len(found) != 100_000 or len(set(found)) != 1:
                return "torn"
        return "whole"

    assert at_once(write, count=3) == ["whole"] * 3
    assert os.listdir(tmp_path) == ["file"]


def test_a_cache_that_several_need_is_filled_once(tmp_path, monkeypatch):
    state = {"w": torch.arange(1000.0)}
    entry = weights.EmbeddedBackbone("a", "p", "1", "0" * 64, 1, "m", content_hash(state), "d", "l")
    monkeypatch.setitem(weights.EMBEDDED, "tiny", entry)
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))

    def convert(backbone, path):
        (tmp_path / f"made by {os.getpid()}").touch()
        write_atomic(path, lambda file: save_file(state, file))
        return state

    monkeypatch.setattr(weights, "_convert", convert)
    found = at_once(lambda: content_hash(weights.embedded_state_dict("tiny")), count=4)
    assert found == [entry.sha256] * 4
    assert len(list(tmp_path.glob("made by *"))) == 1


def test_a_task_that_several_prepare_is_made_once(textile, tmp_path, monkeypatch):  # noqa: F811
    build = prepare._build
    monkeypatch.setattr(
        prepare, "_build", lambda *given: ((tmp_path / f"made by {os.getpid()}").touch(), build(*given))
    )
    (textile / "train800.txt").write_text("damaged")
    assert at_once(lambda: prepare.prepare("textile", textile.parent), count=3) == [textile] * 3
    assert len(list(tmp_path.glob("made by *"))) == 1
    assert embedded.find_fault(textile, "textile") is None
    assert [path.name for path in textile.parent.iterdir() if path.is_dir()] == ["textile"]


def test_a_vtab_task_that_several_export_is_made_once(vtab_task, tmp_path, monkeypatch):  # noqa: F811
    folder, selection = vtab_task
    expected = vtab.read(folder, "cifar100", "train800")
    make = export_module._make

    def counted(*given):
        (tmp_path / f"{given[-1].file.replace('/', '-')} by {os.getpid()}").touch()
        return make(*given)

    monkeypatch.setattr(export_module, "_make", counted)
    root = tmp_path / "again"
    assert at_once(lambda: export(selection, root), count=2) == [root / "cifar100"] * 2
    assert len(list(tmp_path.glob("images-*"))) == len(selection.images)
    found = vtab.read(root / "cifar100", "cifar100", "train800")
    assert found.provenance["pixels"] == expected.provenance["pixels"]
    assert not list(root.rglob("*.tmp"))
