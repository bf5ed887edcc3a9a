"""A clock that jumps while a run goes on changes no duration, no name, no lock and no number."""

import dataclasses
import json
import os
import re
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.together import another
from tests.runs import DROPOUT, tiny_config, write_images
from vpeft import run_folder
from vpeft.run import train
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member
from vpeft.suite.states import states
from vpeft.tasks.resuming import StepSeeds

ROOT = Path(__file__).parents[2]
DAY = 86400.0
# Slurm tells the end of a job as a date.
_DATE = re.compile(r"self\.end - time\.time\(\)")
_WALL = re.compile(r"\btime\.(time|time_ns|clock_gettime)\b|from time import")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def jumping(monkeypatch):
    """A clock that is set a day back or forward whenever somebody looks at it."""
    true, looks = time.time, count()
    monkeypatch.setattr(time, "time", lambda: true() + (DAY if next(looks) % 2 else -DAY))


def test_durations_are_measured_with_clocks_that_do_not_jump():
    """`time.time` and its kin are for dates; `perf_counter` and `monotonic` measure."""
    found = []
    for folder in ("vpeft", "mllm", "tools", "data_prep"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = enumerate(file.read_text("utf-8").splitlines(), start=1)
            found += [f"{file}:{number}" for number, line in lines if _WALL.search(line) and not _DATE.search(line)]
    assert not found


def test_a_run_under_a_jumping_clock_is_the_same_run(images, tmp_path, jumping, monkeypatch):
    config = tiny_config(images, tmp_path / "jumping", DROPOUT, epochs=2)
    before = time.perf_counter()
    with monkeypatch.context() as patch:
        start = StepSeeds.on_train_batch_start

        def die(self, trainer, module, batch, index):
            start(self, trainer, module, batch, index)
            if trainer.current_epoch == 1:
                raise KeyError("dead")

        patch.setattr(StepSeeds, "on_train_batch_start", die)
        with pytest.raises(KeyError, match="dead"):
            train(config)
    row = train(dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True)))
    passed = time.perf_counter() - before
    assert 0 < row["time"]["wall_seconds"] < passed
    assert 0 < row["time"]["step_seconds"] < passed
    assert row["time"]["images_per_second"] > 0
    assert row["folder"].endswith("run")
    monkeypatch.undo()
    steady = dataclasses.replace(config, output=tmp_path / "steady")
    assert train(steady)["test"] == row["test"]
    one, other = (load_file(each.output / "run" / "adapter.safetensors") for each in (config, steady))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_which_run_is_the_newest_follows_from_numbers_and_not_from_times(images, tmp_path):
    config = tiny_config(images, tmp_path)
    runs = [run_folder.create(config) for _ in range(3)]
    for age, run in enumerate(runs):  # the newest looks as the oldest
        for path in (run.path / "run.json", run.path):
            os.utime(path, (time.time() - age * DAY, time.time() - age * DAY))
    found = run_folder.find(config)
    assert found is not None
    assert found.path == runs[-1].path
    assert run_folder.create(config).path.name == "run-4"


def test_locks_neither_open_nor_stick_when_the_clock_jumps(tmp_path, jumping):
    folder = SuiteFolder(tmp_path)
    with another(lambda: folder.holding("one")) as process:
        before = time.perf_counter()
        with folder.holding("one", wait=0.2) as mine:
            assert not mine
        assert time.perf_counter() - before < 60
        assert folder.is_held("one")
        process.kill()
        process.join()
        with folder.holding("one", wait=60) as mine:
            assert mine


@pytest.mark.parametrize("date", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_how_a_member_stands_follows_from_locks_and_not_from_dates(tmp_path, date):
    folder = SuiteFolder(tmp_path)
    member = Member("one", "lora", "colors", 0, "final", {})
    folder.add([member], [[member]])
    folder.write_note("one", status="running", code="code", values=None, error="", started=date, pid=1, host="h")
    assert states(folder, [member], "code")["one"].kind == "interrupted"
    with another(lambda: folder.holding("one")):
        assert states(folder, [member], "code")["one"].kind == "running"
    assert json.loads((tmp_path / "notes" / "one.json").read_text())["started"] == date
