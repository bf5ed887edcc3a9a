"""A command that the campaign kills, and what is said of its files when it has finished."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults.strikes import Strike
from vpeft import adapter_file, cli
from vpeft.checkpoint import read_manifest
from vpeft.fetch import file_sha256
from vpeft.results import read_rows


@dataclass(frozen=True)
class Outcome:
    """What was found after a command had finished.

    Args:
        rows: Result rows, or images of a data set.
        difference: Largest of a weight, or of a byte, from the uninterrupted command's.
        left: Files and folders that the uninterrupted command does not have.
        wrong: Sentences: what else is not as it should be.
    """

    rows: int
    difference: float
    left: list[str]
    wrong: list[str]


@dataclass(frozen=True)
class Kind:
    """Commands of one kind.

    Args:
        name: Of the kind.
        setup: Writes what all commands of the kind read.
        command: Runs it.
        check: Reads its files.
        aims: Points that random numbers would seldom hit.
    """

    name: str
    setup: Callable[[Path], None]
    command: Callable[[Any], None]
    check: Callable[[Any, Any], Outcome]
    aims: Sequence[Strike]


@dataclass(frozen=True)
class Victim:
    """A command with a folder of its own.

    Args:
        kind: Of command.
        shared: Folder of what all of them read.
        folder: What this one writes to.
        number: Of this one; some have two ways to run.
    """

    kind: Kind
    shared: Path
    folder: Path
    number: int

    def __call__(self) -> None:
        """Run it; in a process of its own."""
        torch.set_num_threads(1)
        self.kind.command(self)

    def compare(self, reference: Victim) -> Outcome:
        """What is to be said of its files beside those of the uninterrupted one."""
        mine, theirs = _entries(self.folder), _entries(reference.folder)
        try:
            found = self.kind.check(self, reference)
        except (OSError, ValueError, KeyError) as error:
            found = Outcome(0, float("inf"), [], [str(error)])
        absent = [f"{name} is missing" for name in sorted(theirs - mine)]
        return dataclasses.replace(found, left=sorted(mine - theirs), wrong=[*found.wrong, *absent])


def _entries(folder: Path) -> set[str]:
    """Files and folders; every start of a run adds one file of TensorBoard's, with the time in its name."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    # One log for each of the processes of a suite, which may be one or two.
    return {name.split(".tfevents.")[0].replace("worker-1", "worker-0") for name in names}


def tool(main: Callable[[list[str]], int | None], *words: object) -> None:
    sys.argv[:] = ["tool", *map(str, words)]
    cli.run(main)  # pyright: ignore[reportArgumentType]


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Infinite where a name or a shape differs."""
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return float("inf")
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def adapters(mine: Path, theirs: Path) -> tuple[float, list[str]]:
    """How far an adapter is from another, and what of its manifest differs that does not tell time or place."""
    manifests = [read_manifest(path) for path in (mine, theirs)]
    first, second = (
        adapter_file.read_tensors(path, about) for path, about in zip((mine, theirs), manifests, strict=True)
    )
    ours, others = ({key: one for key, one in about.items() if key not in ("sha256", "result")} for about in manifests)
    wrong = [f"{mine}: {key} of its manifest differs" for key in others if ours.get(key) != others[key]]
    return difference(first, second), wrong


def rows_of(file: Path) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the line that a kill tore
        return read_rows(file)


def bytes_differ(victim: Victim, reference: Victim) -> bool:
    """Whether a file differs; manifests are left out, which tell the time."""
    files = [path.relative_to(reference.folder) for path in reference.folder.rglob("*") if path.is_file()]
    pairs = [(victim.folder / name, reference.folder / name) for name in files if name.name != "manifest.json"]
    return any(not mine.exists() or file_sha256(mine) != file_sha256(theirs) for mine, theirs in pairs)
