"""Submit a command once for every index, as job arrays.

LOGS/NAME_0.sh     what the members from the 0th on run
LOGS/NAME.jsonl    one line an array: its id, its members, the command that was run
LOGS/NAME_0007/    one folder a member, see `vpeft.slurm.job`
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from vpeft.slurm.commands import run
from vpeft.slurm.options import SlurmOptions
from vpeft.slurm.status import active, folder_name


def submit(command: Sequence[str], indices: Iterable[int], logs: Path, name: str, options: SlurmOptions) -> list[str]:
    """Submit the members that are not pending or running already.

    An array larger than the cluster allows (MaxArraySize) is cut; with `options.limit` its parts follow each other, so
    that the limit holds for all of them.

    Args:
        command: Its words, run in the present folder; `{index}` in a word is replaced.
        indices: Of the members.
        logs: Folder for what they say.
        name: Of the job, and of the members' folders.
        options: What is asked of Slurm.

    Returns:
        The ids of the arrays; none where nothing was left to submit.

    Raises:
        ValueError: The name cannot be that of a file.
        RuntimeError: There is no Slurm here, or it refuses: its own message, and the command that was run.
    """
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith((".", "-")):
        raise ValueError(f"The name of a job is made of letters, digits and '-_.+', and '{name}' is not.")
    logs = logs.absolute()
    logs.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []
    with FileLock(logs / f"{name}.lock"):  # of two suites at once, the second finds the members of the first
        wanted = sorted(set(indices) - (active(logs, name) if (logs / f"{name}.jsonl").exists() else set()))
        size = largest_array()
        for first, members in itertools.groupby(wanted, lambda index: index // size * size):
            ids.append(_submit(command, first, list(members), size, logs, name, options, ids))
    return ids


def _submit(
    command: Sequence[str],
    first: int,
    members: Sequence[int],
    size: int,
    logs: Path,
    name: str,
    options: SlurmOptions,
    before: Sequence[str],
) -> str:
    script = logs / f"{name}_{first}.sh"
    script.write_text(_script(command, first, logs, name, options))
    for index in members:  # Slurm makes files, not folders
        (logs / folder_name(name, index, size)).mkdir(exist_ok=True)
    # Slurm counts from 0 in every array, so the leading digits are in the text and the others are padded by it.
    folder = str(logs).replace("%", "%%") + f"/{name}_{first // size}%{len(str(size)) - 1}a"
    spec = _ranges(index - first for index in members) + (f"%{options.limit}" if options.limit else "")
    words = ["sbatch", "--parsable", f"--job-name={name}", f"--array={spec}"]
    words += [f"--output={folder}/stdout", f"--error={folder}/stderr"]
    words += [*_follow(options.arguments(), before[-1] if options.limit and before else None), str(script)]
    job = run(words).split(";")[0]  # of a federation, the cluster follows
    line = {"job": job, "first": first, "size": size, "members": list(members), "command": shlex.join(words)}
    with (logs / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return job


def _follow(words: Sequence[str], job: str | None) -> list[str]:
    """Arguments with all dependencies in one, and one more: sbatch would take the last of several."""
    given = [word for word in words if word.startswith("--dependency=")]
    waits = [f"afterany:{job}"] * (job is not None) + [word.partition("=")[2] for word in given]
    others = [word for word in words if word not in given]
    return [*others, f"--dependency={','.join(waits)}"] if waits else others


def _script(command: Sequence[str], first: int, logs: Path, name: str, options: SlurmOptions) -> str:
    own = [sys.executable, "-m", "vpeft.slurm.job", "--first", str(first), "--retries", str(options.retries)]
    own += ["--stage"] * options.stage
    # The batch process itself gets Slurm's signals, so nothing may stand between.
    return "\n".join(["#!/bin/bash", *options.setup, f"exec {shlex.join([*own, '--', *command])}", ""])


def largest_array() -> int:
    """The largest power of ten that the cluster allows as the size of an array."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run(["scontrol", "show", "config"]), re.MULTILINE)
    allowed = int(found[1]) if found else 1001  # Slurm's default
    if allowed < 10:
        raise RuntimeError(f"This cluster's MaxArraySize is {allowed}: job arrays are switched off. Run it locally.")
    return 10 ** (len(str(allowed)) - 1)


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3,7`: Slurm limits the length of the list."""
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in _runs(sorted(numbers)))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield run[0], run[-1]
