"""Tables of accuracy: averages, and every task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from vpeft.results.averages import TASKS
from vpeft.results.compare import comparable, verdict
from vpeft.results.entry import Entry, Groups
from vpeft.results.published import Published
from vpeft.results.setting import Setting
from vpeft.results.statistics import interval

SHORT = {
    "oxford_flowers102": "flowers",
    "oxford_iiit_pet": "pets",
    "patch_camelyon": "camelyon",
    "diabetic_retinopathy": "retinopathy",
}
_INTERVAL = "± is half the 95 % confidence interval of the mean over seeds (Student's t); one seed has none"


@dataclass
class Table:
    """Text in rows and columns.

    Args:
        title: What it shows.
        columns: Headings; all but the first and those in `words` are numbers.
        words: Headings of columns of prose.
        parts: Groups of rows, with a line between them.
        note: What a reader of it has to know, in sentences.
    """

    title: str
    columns: list[str]
    words: tuple[str, ...] = ()
    parts: list[list[list[str]]] = field(default_factory=list)
    note: str = ""


def shortened(table: Table) -> tuple[list[list[list[str]]], list[str]]:
    """The parts with `not comparable [2]` for `not comparable: reasons`, and the reasons; [1] is the first."""
    reasons: list[str] = []

    def short(row: list[str]) -> list[str]:
        cells = list(row)
        for name in set(table.words) & {"compared"}:
            at = table.columns.index(name)
            head, mark, rest = re.split(r"([:;] |$)", cells[at], maxsplit=1)
            if mark:
                if rest not in reasons:
                    reasons.append(rest)
                cells[at] = f"{head} [{reasons.index(rest) + 1}]"
        return cells

    return [[short(row) for row in part] for part in table.parts], reasons


def average_table(
    setting: Setting, entries: list[Entry], rows: list[Published], groups: Groups, complete: str | None
) -> Table:
    """Means of groups and both averages, published ones below where the setting is one of VTAB-1k."""
    tasks = [task for names in groups.values() for task in names]
    vtab = setting.suite == "VTAB-1k"
    shown = list(groups) if len(groups) > 1 else []
    both = {"group_mean": f"{len(groups)} groups"} if shown else {}
    both |= {"task_mean": f"{len(tasks)} tasks"}
    means = ["each group", f"the {len(groups)} group means"] if shown else []
    means.append(f"the {len(tasks)} tasks")
    table = Table(
        f"Accuracy in %, mean of {', of '.join(means[:-1])}{', and of ' if shown else ''}{means[-1]}",
        ["method", *(["compared"] if vtab else []), "params (M)", "seeds", *shown, *both.values()],
        words=("compared",) if vtab else (),
        note=f"{_INTERVAL}. Averages are taken seed by seed, and have one where all tasks have the same seeds.",
    )
    ours = []
    for entry in entries:
        done, mean, seeds = len(entry.runs), entry.averages(groups), entry.by_seed(groups)
        cells = []
        for group in shown:
            part = f"{sum(task in entry.runs for task in groups[group])} of {len(groups[group])}"
            cells.append(value(mean.groups[group], [one.groups[group] for one in seeds], part))
        for name in both:
            part = "-" if vtab or name == "group_mean" else f"{done} of {len(tasks)}"
            cells.append(value(getattr(mean, name), [getattr(one, name) for one in seeds], part))
        state = "ours" if done == len(TASKS) else f"ours, {done} of {len(TASKS)} tasks"
        ours.append([entry.label, *([state] if vtab else []), f"{entry.params_m:.3f}", entry.seeds, *cells])
    table.parts.append(ours)
    for fits in (True, False):
        part = [row for row in rows if row.averages.stated and comparable(setting.facts, row) is fits]
        table.parts.append([_published_line(setting, row, groups, complete) for row in part])
    table.parts = [part for part in table.parts if part]
    return table


def _published_line(setting: Setting, row: Published, groups: Groups, complete: str | None) -> list[str]:
    mean = row.averages
    params = "-" if row.params_m is None else f"{row.params_m:.3f}"
    values = [*(mean.groups[group] for group in groups), mean.group_mean, mean.task_mean]
    return [label(row), verdict(setting.facts, row, complete), params, "-", *map(value, values)]


def task_table(entries: list[Entry], rows: list[Published], tasks: list[str]) -> Table:
    """Accuracy by task."""
    rows = [row for row in rows if any(task in row.per_task for task in tasks)]
    table = Table(
        "Accuracy in % by task", ["method", "seeds", *(SHORT.get(task, task) for task in tasks)], note=f"{_INTERVAL}."
    )
    table.parts = [[[entry.label, entry.seeds, *(_over_seeds(entry, task) for task in tasks)] for entry in entries]]
    if rows:
        facts = entries[0].setting.facts
        lines = []
        for row in rows:
            told = label(row) + ("" if comparable(facts, row) else ", not comparable")
            lines.append([told, "-", *(value(row.per_task.get(task)) for task in tasks)])
        table.parts.append(lines)
    return table


def _over_seeds(entry: Entry, task: str) -> str:
    values = entry.accuracies.get(task)
    return value(fmean(values), list(values)) if values else "-"


def label(row: Published) -> str:
    """Name and protocol of a published row."""
    return f"{row.method} [{row.family}]"


def value(mean: float | None, seeds: Sequence[float | None] = (), otherwise: str = "-") -> str:
    """`81.52 ± 0.12`, with half the interval over seeds where there are several."""
    if mean is None:
        return otherwise
    half = interval([one for one in seeds if one is not None])
    return f"{mean:.2f}" + (f" ± {half:.2f}" if half is not None else "")
