"""Which process of how many this one is, where that may be asked of Slurm.

Lightning takes a process for a task of a job wherever Slurm's variables are set. They also are in a shell inside an
salloc session, in a batch script, and in whatever inherited its environment. Here only srun's own tasks count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

# Steps above this are not srun's: the batch script, salloc's shell, a container that only waits.
_FIRST_SPECIAL = 0xFFFFFFF0
_OTHERS = (TorchElasticEnvironment, LSFEnvironment, MPIEnvironment)


def launched(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process as a task, and not a shell to type in."""
    step = variables.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= _FIRST_SPECIAL or "SLURM_PROCID" not in variables:
        return False
    return "SLURM_PTY_PORT" not in variables or variables.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def environment(devices: int, nodes: int) -> ClusterEnvironment:
    """How Lightning finds the other processes.

    Args:
        devices: train.devices.
        nodes: train.nodes.

    Raises:
        ValueError: srun started other numbers of tasks; says which, and both remedies.
    """
    if TorchElasticEnvironment.detect() or not launched():  # torchrun may be what srun started
        return next((other() for other in _OTHERS if other.detect()), LightningEnvironment())
    _compare(devices, nodes, os.environ)
    # `vpeft.slurm.job` queues a job again, after `LastCheckpoint` has saved. Lightning's own requeueing writes a
    # checkpoint between two micro-batches, and in a place of its own.
    return SLURMEnvironment(auto_requeue=False)


@dataclass(frozen=True)
class Place:
    """A task among others.

    Args:
        rank: Of this process, from 0.
        start: Tells this start of these processes from every other.
    """

    rank: int
    start: str


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands among the tasks that srun started together; None where it is alone."""
    if not launched(variables) or variables.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    words = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    return Place(int(variables["SLURM_PROCID"]), "-".join(variables.get(word, "0") for word in words))


def settle_rank() -> None:
    """Lightning reads a rank from SLURM_PROCID when it is imported, whoever set it; until there is a Trainer, that is
    what says who makes the run's folder."""
    if "SLURM_PROCID" in os.environ and not {"RANK", "LOCAL_RANK"} & os.environ.keys():
        rank = int(os.environ["SLURM_PROCID"]) if launched() else 0
        rank_zero_only.rank = rank  # pyright: ignore[reportFunctionMemberAccess]


def _compare(devices: int, nodes: int, variables: Mapping[str, str]) -> None:
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1")))
    there = int(variables.get("SLURM_STEP_NUM_NODES", variables.get("SLURM_NNODES", "1")))
    here = tasks // there
    fits = tasks == there * here and nodes == there and devices in (here, -1)
    if not fits:
        raise ValueError(
            f"srun started {tasks} task{'s' * (tasks != 1)} on {there} node{'s' * (there != 1)}, and the config has "
            f"train.devices {devices} and train.nodes {nodes}, which is one task a device. Give --train.devices {here} "
            f"--train.nodes {there}, or ask sbatch for --nodes={nodes} --ntasks-per-node={max(devices, 1)} "
            f"(--slurm.nodes {nodes} --slurm.tasks {max(devices, 1)})."
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in variables:
        raise ValueError(
            f"srun started {tasks} tasks and was not told how many a node; add --ntasks-per-node={here} to srun or "
            "sbatch, in place of --ntasks."
        )
