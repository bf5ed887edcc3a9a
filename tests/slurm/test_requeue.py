"""A job that is stopped or killed is started again and ends with the bits of one that was not, and with one row."""

import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.runs import DROPOUT, tiny_config, write_images
from tests.slurm.cluster import wait
from vpeft import run
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.slurm import SlurmOptions, active, members, submit
from vpeft.slurm.notes import events

ROOT = Path(__file__).parents[2]
# scancel may be told that a job cannot be altered now, whose signal has arrived; it then sends it again and again.
QUICKLY = ("timeout", "2")
STOPS = ["the time limit", "USR1 to the tasks", "scontrol requeue", "SIGKILL of the run", "SIGKILL of the job"]


def make_config(images, output):
    # Long enough to be stopped by commands, each of which is a process.
    return tiny_config(images, output, DROPOUT, epochs=15, ema=0.8, accumulate=2)


def reached(folder, epoch):
    said = folder / "stdout"
    return said.exists() and f"epoch {epoch}/" in said.read_text()


def strike(how, slurm, member, train):
    """Stop a member in one of the ways of STOPS."""
    if how == "the time limit":  # what --signal=B:USR1@SECONDS does when it comes
        slurm.run(*QUICKLY, "scancel", "--batch", "--signal=USR1", member.job)
    elif how == "USR1 to the tasks":
        slurm.run(*QUICKLY, "scancel", "--signal=USR1", member.job)
    elif how == "scontrol requeue":
        slurm.run("scontrol", "requeue", member.job)
    elif how == "SIGKILL of the run":
        words = ["pgrep", "--full", f"^{' '.join(train)} .*/{member.index} "]
        (process,) = subprocess.run(words, capture_output=True, text=True).stdout.split()
        os.kill(int(process), signal.SIGKILL)
    else:
        os.kill(events(member.folder)[-1]["pid"], signal.SIGKILL)
        wait(
            lambda: slurm.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={member.job}") == "FAILED"
        )
        slurm.run("scontrol", "requeue", member.job)


def stop_each(slurm, train, folder):
    """Submit a member for each way of STOPS, stop it in the middle of its training, and wait for the ends."""
    command = [*train, str(folder / "config.yaml"), "--output", f"{folder}/{{index}}", "--train.resume", "true"]
    submit(command, range(len(STOPS)), folder, "job", SlurmOptions(retries=1))
    left, end = set(range(len(STOPS))), time.monotonic() + 600
    while left or active(folder, "job"):
        known = members(folder, "job")
        assert time.monotonic() < end, known
        for index in [index for index in left if reached(known[index].folder, 3)]:
            strike(STOPS[index], slurm, known[index], train)
            left.remove(index)
        time.sleep(0.1)


# One test, because its parts share what takes long.
def test_runs_stopped_in_every_way_equal_one_that_was_not(slurm, train, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    images = write_images(tmp_path / "images" / "colors")
    (tmp_path / "config.yaml").write_text(to_yaml(make_config(images, tmp_path)))
    stop_each(slurm, train, tmp_path)
    expected = run.train(make_config(images, tmp_path / "uninterrupted"))
    weights = load_file(tmp_path / "uninterrupted" / "run" / "adapter.safetensors")
    for index, how in enumerate(STOPS):
        member, output = members(tmp_path, "job")[index], tmp_path / str(index)
        said = (member.folder / "stderr").read_text()
        assert (member.state, member.runs) == ("completed", 2), (how, said)
        assert ("Stopped by SIGUSR1 after" in said) == (how in ("the time limit", "USR1 to the tasks")), (how, said)
        (row,) = read_rows(output / "results.jsonl")
        assert [path.name for path in output.iterdir() if path.is_dir()] == ["run"], how
        assert row["device"]["processes"] == 1
        for part in ("test", "val", "epochs", "parameters"):
            assert row[part] == expected[part], how
        found = load_file(output / "run" / "adapter.safetensors")
        assert set(found) == set(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights), how
