"""How items are handed to Slurm, and what a local process gets of the machine."""

import os
import sys
from types import SimpleNamespace

import pytest

from vpeft import slurm
from vpeft.config import ConfigError
from vpeft.suite import command, machine, settings, show
from vpeft.suite.folder import SuiteFolder


@pytest.fixture
def submitted(monkeypatch):
    """What would have been submitted; every array stays pending."""
    calls = []

    def submit(words, indices, logs, name, options):
        calls.append(SimpleNamespace(words=words, indices=list(indices), logs=logs, name=name, options=options))
        return [str(100 + len(calls))]

    def members(logs, name):
        return {
            index: SimpleNamespace(job=f"{100 + n}_{index}") for n, one in enumerate(calls, 1) for index in one.indices
        }

    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "members", members)
    monkeypatch.setattr(slurm, "active", lambda logs, name: set(members(logs, name)))
    return calls


def test_final_items_wait_for_the_jobs_of_the_tuning_items(write, ask, submitted, capsys):
    words = ["--sweep", "lr=0.02,0.01", "--seeds", "2", "--launcher", "slurm", "--slurm.partition", "gpu"]
    request = ask(write("lora"), *words, "--retries", "3")
    assert command.run(request) == 0
    tuning, final = submitted
    assert (tuning.indices, final.indices) == ([0, 1], [2, 3])
    assert tuning.words == [sys.executable, "-m", "vpeft.suite.worker", str(request.output.absolute()), "{index}"]
    assert (tuning.options.partition, tuning.options.retries, tuning.options.extra) == ("gpu", 3, [])
    assert final.options.extra == ["--dependency=afterany:101"]
    assert "final: 2 items in job 102" in capsys.readouterr().out


def test_the_status_says_what_the_codes_of_a_worker_mean(tmp_path, monkeypatch):
    def members(logs, name):
        states = {1: "code 4", 2: "code 5", 3: "code 2"}
        return {
            index: SimpleNamespace(index=index, job=f"7_{index}", state="failed", reason=reason, folder=logs)
            for index, reason in states.items()
        }

    monkeypatch.setattr(slurm, "members", members)
    said = show.jobs(SuiteFolder(tmp_path), "suite").splitlines()
    assert "item 1, job 7_1: its settings were not chosen yet, or it was stale; log" in said[2]
    assert "item 2, job 7_2: another process had it; log" in said[3]
    assert "item 3, job 7_3: code 2; log" in said[4]


def test_a_job_has_the_processes_of_its_run(write, ask, submitted):
    words = ["--launcher", "slurm", "--train.devices", "2", "--train.nodes", "2"]
    with pytest.raises(
        ConfigError,
        match=r"^command line: lora has train.devices 2 and train.nodes 2, .* --slurm.tasks 1 and --slurm.nodes 2; ",
    ):
        command.run(ask(write("lora"), *words, "--slurm.nodes", "2"))
    assert not submitted
    assert command.run(ask(write("lora"), *words, "--slurm.nodes", "2", "--slurm.tasks", "2")) == 0
    (final,) = submitted
    assert (final.options.nodes, final.options.tasks) == (2, 2)


def test_retries_of_a_file_of_options_hold(write, ask, submitted, tmp_path):
    (tmp_path / "lab.yaml").write_text("retries: 7\n")
    assert command.run(ask(write("lora"), "--launcher", "slurm", "--slurm.file", str(tmp_path / "lab.yaml"))) == 0
    assert submitted[0].options.retries == 7


def test_an_option_that_slurm_has_not_is_refused_before_anything_is_planned():
    words = ["configs/vtab/lora.yaml", "--launcher", "slurm", "--slurm.partitoin", "gpu"]
    with pytest.raises(ConfigError, match=r"there is no slurm.partitoin; did you mean 'partition'"):
        settings.parse(words)


def test_processes_share_cores_and_take_gpus_in_turn(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    given = [machine.share(place, 3, ["4", "7"]) for place in range(3)]
    assert given == [{"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": device} for device in ("4", "7", "4")]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.share(0, 3, []) == {"OMP_NUM_THREADS": "5"}
