"""tools/slurm/train.sbatch over two nodes, one task each: stopped, started again by itself, the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import SGD, tiny_config, write_images
from tests.slurm.cluster import wait
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.slurm import SlurmOptions, active, members, submit
from vpeft.slurm.notes import events

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(slurm, tmp_path, monkeypatch):
    """A run of two processes, to be submitted from a folder that looks like the project's."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the two nodes are this machine, and have no names of their own
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    images = write_images(tmp_path / "images" / "colors")
    config = tiny_config(images, tmp_path / "out", optim=SGD, epochs=15, strategy="ddp", nodes=2)
    Path("config.yaml").write_text(to_yaml(config))
    return config


def test_two_nodes_stopped_and_started_again_equal_two_that_were_not(slurm, train, config):
    submit([*train, "config.yaml", "--output", "reference"], [0], Path("logs"), "reference", SlurmOptions(nodes=2))
    wait(lambda: not active(Path("logs"), "reference"))
    assert members(Path("logs"), "reference")[0].state == "completed"

    sbatch = ["sbatch", "--parsable", "--nodes=2", "tools/slurm/train.sbatch", "config.yaml"]
    job = subprocess.run(sbatch, capture_output=True, text=True, check=True).stdout.strip()
    folder = Path(f"logs/vpeft_{job}")
    said = folder / "stdout"
    wait(lambda: said.exists() and "epoch 3/" in said.read_text())
    slurm.run("timeout", "2", "scancel", "--batch", "--signal=USR1", job)
    wait(lambda: sum(event["event"] == "end" for event in events(folder)) == 2)
    assert [event["state"] for event in events(folder) if event["event"] == "end"] == ["saved", "completed"]

    reference, row = (read_rows(Path(name) / "results.jsonl") for name in ("reference", "out"))
    assert [path.name for path in Path("out").iterdir() if path.is_dir()] == ["run"]
    assert row[0]["device"]["processes"] == reference[0]["device"]["processes"] == 2
    assert len(row) == len(reference) == 1
    assert row[0]["test"] == reference[0]["test"]
    one, two = (load_file(Path(name) / "run" / "adapter.safetensors") for name in ("reference", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fsdp_over_two_nodes_learns_what_ddp_does(slurm, train, config):
    for name in ("ddp", "fsdp"):
        words = [*train, "config.yaml", "--output", name, "--train.strategy", name, "--train.epochs", "2"]
        submit(words, [0], Path("logs"), name, SlurmOptions(nodes=2))
        wait(lambda name=name: not active(Path("logs"), name))
        assert members(Path("logs"), name)[0].state == "completed"
    (ddp,), (fsdp,) = (read_rows(Path(name) / "results.jsonl") for name in ("ddp", "fsdp"))
    assert fsdp["device"]["processes"] == ddp["device"]["processes"] == 2
    assert fsdp["test"]["loss"] == pytest.approx(ddp["test"]["loss"], abs=1e-5)
    one, two = (load_file(Path(name) / "run" / "adapter.safetensors") for name in ("ddp", "fsdp"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)


def test_a_config_of_other_numbers_ends_at_once_and_says_why(slurm, train, config):
    submit([*train, "config.yaml", "--train.nodes", "1"], [0], Path("logs"), "other", SlurmOptions(nodes=2, retries=3))
    wait(lambda: not active(Path("logs"), "other"))
    member = members(Path("logs"), "other")[0]
    assert (member.state, member.reason, member.runs) == ("failed", "code 2", 1)
    assert (
        "error: srun started 2 tasks on 2 nodes, and the config has train.devices 1 and train.nodes 1"
        in (member.folder / "stderr").read_text()
    )
    assert not Path("out/results.jsonl").exists()
