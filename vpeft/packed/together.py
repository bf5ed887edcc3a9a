"""Several runs in one process: each with its own folder, files and row, over one copy of the frozen weights."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as L

from vpeft import frozen, run, run_folder
from vpeft.config import Config
from vpeft.holding import held
from vpeft.job import Job
from vpeft.packed.fit import check
from vpeft.packed.pack import Pack, Seat
from vpeft.packed.sharing import own_adopted, share_images, twin
from vpeft.quiet import quieten
from vpeft.slurm.staging import local
from vpeft.tasks import build
from vpeft.tasks.timing import Timing, Waiting

Outcome = Mapping[str, Any] | Exception


def train_together(configs: Sequence[Config], beside: Sequence[Mapping[str, Any]] | None = None) -> list[Outcome]:
    """Train runs of one method on one backbone at once; each ends as `vpeft.run.train` would end it alone.

    Weights, logits and measures are those of a run of its own, to rounding. Rows have one more field, `packed`:
    members, position among them, and what is of the whole pack and not of the member alone (time and memory). With
    `train.resume` finished members return their rows, and others go on from their checkpoints, which are those of
    separate runs.

    Args:
        configs: Of the members. They share method, backbone and batch size (`vpeft.packed.fit`); task, seed, optimiser,
            head and lengths may differ.
        beside: Further fields of each row, as for `vpeft.run.train`.

    Returns:
        For each member its row, or what ended it (a loss that is no number, an image that cannot be read): the others
        went on.

    Raises:
        ConfigError: The runs cannot be packed; nothing has been written.
        Interrupted: A signal stopped the pack; unfinished members can be resumed, together or each alone.
    """
    configs = [run.complete(config) for config in configs]
    check(configs)
    others = list(beside) if beside is not None else [{} for _ in configs]
    known = [run_folder.find(config) if config.train.resume else None for config in configs]
    outcomes: dict[int, Any] = {at: one.result for at, one in enumerate(known) if one is not None and one.result}
    open_ = [at for at in range(len(configs)) if at not in outcomes]
    seats: dict[Seat, Callable[[], Any]] = {}
    folders = []
    if open_:
        timings = [Timing(Waiting()) for _ in open_]
        jobs = _assemble([configs[at] for at in open_])
        for at, job, timing in zip(open_, jobs, timings, strict=True):
            folder = known[at] or run.new_run(configs[at])
            folders.append(folder)
            packed = {"packed": {"members": len(configs), "position": at, "shared": ["time", "memory"]}}
            seat = job.task.elsewhere = Seat(job.task.tuned, at)
            job = dataclasses.replace(job, seat=seat)
            seats[seat] = partial(run.carry_out, configs[at], folder, job, timing, {**others[at], **packed})
    with contextlib.ExitStack() as holding:
        for folder in folders:
            holding.enter_context(held(folder))
        Pack(seats).run()
    outcomes |= {seat.position: seat.outcome for seat in seats}
    _tell(seats)
    return [outcomes[at] for at in range(len(configs))]


def _assemble(configs: Sequence[Config]) -> list[Job]:
    """The jobs of runs alone, around one copy of the frozen weights, and of the images that are the same."""
    quieten()
    backbone, jobs = build.build_backbone(configs[0]), []
    for config in configs:
        L.seed_everything(config.seed, workers=True, verbose=False)
        jobs.append(build.assemble(local(config), twin(backbone)))
        own_adopted(jobs[-1].task.tuned)
    for config, job in zip(configs, jobs, strict=True):
        frozen.store(job.task.tuned, config.train.frozen)
    share_images([job.data for job in jobs])
    return jobs


def _tell(seats: Iterable[Seat]) -> None:
    """Say which members failed, and leave where a signal stopped others."""
    stopped = [seat.outcome for seat in seats if isinstance(seat.outcome, SystemExit)]
    for seat in seats:
        if isinstance(seat.outcome, Exception):
            print(f"Member {seat.position} of the pack failed: {seat.outcome}", file=sys.stderr, flush=True)
    if stopped:
        raise stopped[0]
