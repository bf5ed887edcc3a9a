"""One method under one setting: its runs by task and seed, and what they measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from vpeft.results.averages import Averages, averages
from vpeft.results.setting import Setting

Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True, order=True)
class Machine:
    """Under what time and memory were measured; figures of different ones do not compare.

    Args:
        device: Its name, `cpu` for every processor.
        processes: Of the run.
        threads: Of a process.
        batch: Images in a batch.
        precision: Of forward and backward pass, and of frozen weights where they are stored in another.
        memory: What the peak is of.
        packed: Runs in one process, whose time and memory are those of all together.
    """

    device: str
    processes: int
    threads: int
    batch: int
    precision: str
    memory: str
    packed: int

    def __str__(self) -> str:
        processes = f"{self.processes} processes" if self.processes > 1 else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        packed = f"{self.packed} runs packed" if self.packed > 1 else ""
        return ", ".join(filter(None, [self.device, processes, threads, f"batch {self.batch}", self.precision, packed]))


@dataclass(frozen=True)
class Cost:
    """Medians over the runs of one method on one machine; None is not measured.

    Args:
        runs: How many there are.
        step_seconds: Of one optimiser step.
        images_per_second: Trained.
        wall_seconds: Of a whole run.
        peak_bytes: Memory.
    """

    runs: int
    step_seconds: float | None
    images_per_second: float | None
    wall_seconds: float | None
    peak_bytes: float | None


@dataclass
class Entry:
    """One method under one setting.

    Args:
        setting: What it shares with the other entries of its table.
        method: List of method specs.
        runs: Rows by task and seed.
        label: The method, with the options that tell it from the other entries.
        notes: What a reader has to know besides.
    """

    setting: Setting
    method: list[dict[str, Any]]
    runs: dict[str, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    label: str = ""
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """All its rows."""
        for seeds in self.runs.values():
            yield from seeds.values()

    @property
    def accuracies(self) -> dict[str, list[float]]:
        """Test accuracy in per cent by task, one a seed."""
        return {
            task: [100 * seeds[seed]["test"]["accuracy"] for seed in sorted(seeds)] for task, seeds in self.runs.items()
        }

    @property
    def calibration(self) -> dict[str, list[float]]:
        """Expected calibration error in per cent by task, one a seed, where it was measured."""
        found = {
            task: [100 * value for seed in sorted(seeds) if (value := number(seeds[seed], "test", "ece")) is not None]
            for task, seeds in self.runs.items()
        }
        return {task: values for task, values in found.items() if values}

    @property
    def seeds(self) -> str:
        """How many seeds each task has."""
        counts = sorted({len(seeds) for seeds in self.runs.values()})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"

    @property
    def params_m(self) -> float:
        """Trained parameters without the head, in millions; the mean where tasks differ."""
        return fmean(row["parameters"]["method"] + row["parameters"]["adopted"] for row in self.rows()) / 1e6

    def averages(self, groups: Groups) -> Averages:
        """Averages of each task's mean over seeds."""
        return averages({task: fmean(values) for task, values in self.accuracies.items()}, groups)

    def by_seed(self, groups: Groups) -> list[Averages]:
        """Averages of each seed, where all of these tasks that were run have the same ones."""
        there = {task: self.runs[task] for tasks in groups.values() for task in tasks if task in self.runs}
        seeds = {tuple(sorted(found)) for found in there.values()}
        if len(seeds) != 1:
            return []
        return [
            averages({task: 100 * found[seed]["test"]["accuracy"] for task, found in there.items()}, groups)
            for seed in next(iter(seeds))
        ]

    def costs(self) -> dict[Machine, Cost]:
        """Time and memory by what they were measured on; rows that do not say it are left out."""
        on: dict[Machine, list[Mapping[str, Any]]] = {}
        for row in self.rows():
            if machine := _machine(row):
                on.setdefault(machine, []).append(row)

        def middle(rows: list[Mapping[str, Any]], *keys: str) -> float | None:
            values = [value for row in rows if (value := number(row, *keys)) is not None]
            return median(values) if values else None

        found = {
            machine: Cost(
                len(rows),
                middle(rows, "time", "step_seconds"),
                middle(rows, "time", "images_per_second"),
                middle(rows, "time", "wall_seconds"),
                middle(rows, "memory", "peak_bytes"),
            )
            for machine, rows in on.items()
        }
        return {
            machine: cost
            for machine, cost in found.items()
            if cost.step_seconds is not None or cost.peak_bytes is not None
        }


def number(row: Mapping[str, Any], *keys: str) -> float | None:
    """A finite number deep in a row; None where it is missing or something else."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None


def _machine(row: Mapping[str, Any]) -> Machine | None:
    device = row.get("device")
    if not isinstance(device, Mapping) or not device.get("name"):
        return None
    memory = row.get("memory")
    return Machine(
        str(device["name"]),
        int(number(row, "device", "processes") or 1),
        int(number(row, "device", "threads") or 0),
        int(number(row, "data", "batch_size") or 0),
        str(row["train"].get("precision", "")) + (", frozen bf16" if row["train"].get("frozen") == "bf16" else ""),
        str(memory.get("of", "")) if isinstance(memory, Mapping) else "",
        int(number(row, "packed", "members") or 1),
    )


@dataclass(frozen=True)
class Block:
    """Methods that have all been run on the same tasks: only these may be ranked or averaged side by side.

    Args:
        tasks: In the order of the tables.
        entries: The methods.
        left_out: Labels of those that lack a task.
    """

    tasks: list[str]
    entries: list[Entry]
    left_out: list[str]

    def scores(self) -> list[list[float]]:
        """Mean accuracy over seeds in per cent: one list a task, one number a method."""
        means = [{task: fmean(values) for task, values in entry.accuracies.items()} for entry in self.entries]
        return [[one[task] for one in means] for task in self.tasks]


def complete_block(entries: Sequence[Entry], tasks: Sequence[str]) -> Block:
    """The methods with every task if there are two or more of them, or else all methods on the tasks they share."""
    whole = [entry for entry in entries if all(task in entry.runs for task in tasks)]
    if len(whole) > 1:
        return Block(list(tasks), whole, [entry.label for entry in entries if entry not in whole])
    return Block([task for task in tasks if all(task in entry.runs for entry in entries)], list(entries), [])
