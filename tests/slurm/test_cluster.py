"""Who counts as a task of a job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from tests.runs import tiny_config, write_images
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.slurm.cluster import Place, environment, launched, place

ROOT = Path(__file__).parents[2]
# As sbatch and salloc set them, and what srun adds.
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NAME": "x",
}
SCRIPT = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = SCRIPT | {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
SHELL = SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "40000"}


@pytest.fixture
def variables(monkeypatch):
    for key in [key for key in os.environ if key.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(key)

    def put(values):
        for key, value in values.items():
            monkeypatch.setenv(key, value)

    return put


@pytest.mark.parametrize(
    ("values", "is_task"),
    [
        ({}, False),
        (JOB, False),
        (SCRIPT, False),
        (TASK, True),
        (TASK | {"SLURM_STEP_NUM_TASKS": "1"}, True),
        (SHELL, False),  # srun --pty bash
        (SHELL | TASK, True),  # srun -n 2 in such a shell
        (SCRIPT | {"SLURM_STEP_ID": "4294967290"}, False),  # the shell that salloc starts on the node
    ],
)
def test_only_what_srun_started_is_a_task(values, is_task):
    assert launched(values) is is_task


def test_tasks_that_srun_started_together_know_each_other():
    start = {"SLURM_RESTART_COUNT": "2"}
    assert place(TASK | start) == Place(1, "7-2-0")
    assert place(TASK | start | {"SLURM_PROCID": "0"}) == Place(0, "7-2-0")
    assert place(TASK | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert place(SCRIPT) is None


@pytest.mark.parametrize("values", [{}, JOB, SCRIPT, SHELL])
def test_elsewhere_lightning_starts_the_processes(variables, values):
    variables(values)
    assert isinstance(environment(2, 1), LightningEnvironment)


def test_a_task_is_what_slurm_says_and_lightning_requeues_nothing(variables):
    variables(TASK)
    found = environment(2, 1)
    assert isinstance(found, SLURMEnvironment)
    assert (found.global_rank(), found.world_size(), found.auto_requeue) == (1, 2, False)
    assert isinstance(environment(-1, 1), SLURMEnvironment)


@pytest.mark.parametrize(
    ("values", "devices", "nodes", "sentence"),
    [
        (
            TASK,
            1,
            1,
            "srun started 2 tasks on 1 node, and the config has train.devices 1 and train.nodes 1, which is one task a "
            "device. Give --train.devices 2 --train.nodes 1, or ask sbatch for --nodes=1 --ntasks-per-node=1 "
            "(--slurm.nodes 1 --slurm.tasks 1).",
        ),
        (
            TASK | {"SLURM_STEP_NUM_TASKS": "1"},
            4,
            2,
            "srun started 1 task on 1 node, and the config has train.devices 4 and train.nodes 2, which is one task a "
            "device. Give --train.devices 1 --train.nodes 1, or ask sbatch for --nodes=2 --ntasks-per-node=4 "
            "(--slurm.nodes 2 --slurm.tasks 4).",
        ),
    ],
)
def test_other_numbers_than_slurm_gave_are_refused(variables, values, devices, nodes, sentence):
    variables(values)
    with pytest.raises(ValueError, match="srun started") as refused:
        environment(devices, nodes)
    assert str(refused.value) == sentence


def test_tasks_that_are_not_counted_by_node_are_refused(variables):
    variables({key: value for key, value in TASK.items() if key != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(
        ValueError, match=r"srun started 2 tasks and was not told how many a node; add --ntasks-per-nod"
    ):
        environment(2, 1)


def test_training_in_a_shell_of_salloc_is_no_task(tmp_path):
    images = write_images(tmp_path / "images" / "colors")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(tiny_config(images, tmp_path / "out", epochs=1)))
    left = SHELL | {"SLURM_PROCID": "1"}  # of a task that went before; Lightning reads it when it is imported
    done = subprocess.run(
        [sys.executable, "tools/train.py", str(file)], cwd=ROOT, env=os.environ | left, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "out" / "results.jsonl")
    assert row["device"]["processes"] == 1
    assert "srun" not in done.stderr
