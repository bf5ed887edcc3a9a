"""What tools/suite.py does: plan, launch, and say how it stands."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from vpeft.config import COMMAND_LINE, ConfigError
from vpeft.suite import board, code, plan, show
from vpeft.suite.choice import SETTLED
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.local import Pool
from vpeft.suite.members import Item, Member
from vpeft.suite.settings import Request
from vpeft.suite.states import State, states

SLURM_NAME = "suite"  # of the arrays


def run(request: Request) -> int:
    """Run what is left of a suite.

    Returns:
        The exit code: 0 when all is done, 1 when a member failed or could not be chosen for, 128 + a signal's number.

    Raises:
        ConfigError: A file, a setting or a swept value is wrong.
    """
    members = plan.build(request)
    if request.launcher == "slurm":
        _check_tasks(request, members)
    folder = SuiteFolder(request.output)
    found = states(folder, members, code.identity())
    todo = [one for one in members if _is_open(found[one.id], request.rerun == "stale")]
    items = folder.add(members, plan.items(todo, request.pack))
    folder.write_request(plan.to_yaml(request, members))
    board.write_experiment(folder, folder.current())
    print(show.opening(folder, request, members, found, len(todo)), flush=True)
    if request.launcher == "slurm":
        return _submit(request, folder, items)
    stopped = _work(request, folder, members, items, found) if items else None
    found = states(folder, members, code.identity())
    print(show.status(folder, members, found), flush=True)
    if stopped is not None:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 128 + stopped
    return 1 if {state.kind for state in found.values()} & {"failed", "interrupted", "waiting"} else 0


def status(path: Path) -> int:
    """Show how a suite stands; needs nothing but its folder.

    Raises:
        ConfigError: The folder holds no suite.
    """
    folder = SuiteFolder(path)
    members = folder.current()
    if not members:
        raise ConfigError(f"{path} holds no suite: it has no members.jsonl; give the --output of a suite")
    print(show.status(folder, members, states(folder, members, code.identity())))
    if (folder.path / "slurm").is_dir():
        print(show.jobs(folder, SLURM_NAME))
    return 0


def _is_open(state: State, stale: bool) -> bool:
    return state.kind not in SETTLED and (state.kind != "stale" or stale)


def _work(
    request: Request,
    folder: SuiteFolder,
    members: Sequence[Member],
    items: Sequence[Item],
    found: dict[str, State],
) -> int | None:
    progress = show.Progress(folder, sum(len(item.members) for item in items), request.jobs, request.retries)
    pool = Pool(
        folder,
        {one.id: one for one in members},
        items,
        {key for key, state in found.items() if state.kind in SETTLED},
        request.jobs,
        request.retries,
        request.rerun == "stale",
        progress.note,
        progress.tick,
    )
    return pool.run()


def _submit(request: Request, folder: SuiteFolder, items: Sequence[Item]) -> int:
    """Two arrays, the final one after the tuning one."""
    from vpeft import slurm

    options = slurm.options(request.slurm, COMMAND_LINE)
    if "retries" not in dict(request.slurm) and not options.retries:  # nor in a file of options
        options = dataclasses.replace(options, retries=request.retries)
    rerun = ["--rerun", "stale"] if request.rerun else []
    command = [sys.executable, "-m", "vpeft.suite.worker", str(folder.path.absolute()), "{index}", *rerun]
    jobs: list[str] = []
    for phase in ("tuning", "final"):
        indices = [item.index for item in items if item.phase == phase]
        if not indices:
            continue
        if jobs:
            after = f"--dependency=afterany:{':'.join(jobs)}"
            options = dataclasses.replace(options, extra=[*options.extra, after])
        slurm.submit(command, indices, folder.path / "slurm", SLURM_NAME, options)
        # Those of an earlier command that have not ended count too.
        jobs = _jobs(folder, set(indices))
        print(f"{phase}: {len(indices)} items in {'job' if len(jobs) == 1 else 'jobs'} {', '.join(jobs) or 'none'}")
    print(f"How it stands: python tools/suite.py --status {folder.path}")
    return 0


def _check_tasks(request: Request, members: Sequence[Member]) -> None:
    """Refuse members whose jobs would be refused, each for itself and after it has waited."""
    from vpeft import slurm

    options = slurm.options(request.slurm, COMMAND_LINE)
    for one in members:
        devices, nodes = one.settings["train"]["devices"], one.settings["train"]["nodes"]
        if nodes != options.nodes or devices not in (options.tasks, -1):
            raise ConfigError(
                f"{COMMAND_LINE}: {one.method} has train.devices {devices} and train.nodes {nodes}, which is one task "
                f"a device, and a job has --slurm.tasks {options.tasks} and --slurm.nodes {options.nodes}; give equal "
                "numbers"
            )


def _jobs(folder: SuiteFolder, indices: set[int]) -> list[str]:
    """The arrays in which items wait or run."""
    from vpeft import slurm

    logs = folder.path / "slurm"
    known, there = slurm.members(logs, SLURM_NAME), slurm.active(logs, SLURM_NAME) & indices
    return sorted({known[index].job.partition("_")[0] for index in there})
