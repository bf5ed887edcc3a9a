"""Runs beside published numbers: which tables there are, and what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vpeft.data.tables import ALIASES, EMBEDDED, VTAB
from vpeft.nearest import did_you_mean
from vpeft.results import published, runs
from vpeft.results.averages import GROUPS, TASKS, Averages, tasks_of
from vpeft.results.compare import comparable, verdict
from vpeft.results.published import Published
from vpeft.results.runs import Entry, spread
from vpeft.results.setting import Setting

SHORT = {
    "oxford_flowers102": "flowers",
    "oxford_iiit_pet": "pets",
    "patch_camelyon": "camelyon",
    "diabetic_retinopathy": "retinopathy",
}


@dataclass
class Table:
    """Text in rows and columns.

    Args:
        title: What it shows.
        columns: Headings; all but the first and those in `words` are numbers.
        words: Headings of columns of prose.
        parts: Groups of rows, with a line between them.
    """

    title: str
    columns: list[str]
    words: tuple[str, ...] = ()
    parts: list[list[list[str]]] = field(default_factory=list)


@dataclass
class Section:
    """The tables of one setting.

    Args:
        title: The protocol, or what kind of data it is.
        about: The setting in words.
        notes: What a reader has to know.
    """

    title: str
    about: str
    tables: list[Table]
    notes: list[str]


@dataclass
class Report:
    """Everything a report says.

    Args:
        sections: One a setting, by protocol.
        notes: On the files that were read.
        records: One a line of the tables, values unrounded, for a spreadsheet.
    """

    sections: list[Section]
    notes: list[str]
    records: list[dict[str, Any]]


def build(paths: Iterable[Path], tasks: Sequence[str] = (), methods: Sequence[str] = ()) -> Report:
    """Read result rows and set them beside published ones.

    Args:
        paths: Files of rows, or folders with results.jsonl files below them.
        tasks: Only these; all if empty.
        methods: Only these, runs and published rows; all if empty.

    Raises:
        FileNotFoundError: There is no such file, or no results.jsonl in a folder.
        ValueError: A task or a method is not known, or no row is left.
    """
    rows, notes = runs.find(paths)
    tasks = _known(
        "task", [ALIASES.get(task, task) for task in tasks], [*VTAB, *EMBEDDED], (row["task"] for row in rows)
    )
    used = (spec["name"] for row in rows for spec in row["method"])
    there = [row.spec["name"] for row in published.load() if row.spec]
    methods = _known("method", methods, there, used)
    if tasks:
        rows = [row for row in rows if row["task"] in tasks]
    if methods:
        rows = [row for row in rows if any(spec["name"] in methods for spec in row["method"])]
    if not rows:
        raise ValueError(
            "There is no result row to report" + (" for these tasks and methods." if tasks or methods else ".")
        )
    rows, repeats = runs.without_repeats(rows)
    by_setting: dict[Setting, list[Entry]] = {}
    for entry in runs.entries_of(rows):
        by_setting.setdefault(entry.setting, []).append(entry)
    report = Report([], notes + repeats, [])
    for setting in sorted(by_setting, key=_order):
        _add(report, setting, by_setting[setting], tasks, methods)
    return report


def _known(kind: str, given: Sequence[str], known: Iterable[str], used: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys([*used, *known]))
    for name in given:
        if name not in names:
            raise ValueError(f"command line: there is no {kind} '{name}'; {did_you_mean(name, names)}")
    return list(given)


def _order(setting: Setting) -> tuple[Any, ...]:
    return ("VTAB-1k", "embedded", "own").index(setting.suite), not setting.protocol, setting


def _add(report: Report, setting: Setting, entries: list[Entry], tasks: list[str], methods: list[str]) -> None:
    title = f"protocol {setting.protocol}" if setting.protocol else "no protocol named"
    found = [task for task in [*TASKS, *EMBEDDED] if any(task in entry.runs for entry in entries)]
    found += sorted({task for entry in entries for task in entry.runs} - set(found))
    notes = [f"{entry.label}: {note}." for entry in entries for note in entry.notes]
    if setting.suite != "VTAB-1k":
        kind = "Embedded tasks" if setting.suite == "embedded" else "Data of one's own"
        notes.append("These are not VTAB results: no published number belongs beside them.")
        table = _per_task("Accuracy in %", entries, [], found)
        report.sections.append(Section(f"{kind}, {title}", str(setting), [table], notes))
        report.records += [_record(entry, found) for entry in entries]
        return
    if setting.weights.startswith("file"):
        notes.append("The weights came from a file: that they are those of the backbone's name is not checked here.")
    rows, left_out = _beside(setting, entries, methods)
    complete = None
    if not any(len(entry.runs) == len(TASKS) for entry in entries):
        counts = sorted({len(entry.runs) for entry in entries})
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        complete = f"tasks: ours are {many} of {len(TASKS)}, so there is no average of ours"
    tables = [] if tasks else [_averages(setting, entries, rows, complete)]
    with_tasks = [row for row in rows if any(task in row.per_task for task in found)]
    tables.append(_per_task("Accuracy in % by task", entries, with_tasks, found))
    notes += [f"{row.method} ({row.family}): {note}." for row in rows for note in row.notes]
    notes += left_out
    report.sections.append(Section(f"VTAB-1k, {title}", str(setting), tables, notes))
    report.records += [_record(entry, found) for entry in entries]
    report.records += [_published_record(setting, row, complete) for row in rows]


def _beside(setting: Setting, entries: list[Entry], methods: list[str]) -> tuple[list[Published], list[str]]:
    """Published rows of the methods that ran and all comparable ones, those first; and what was left out."""
    wanted = [row for row in published.load() if not methods or (row.spec and row.spec["name"] in methods)]
    same = [row for row in wanted if any(row.is_of(entry.method) for entry in entries)]
    fitting = [row for row in wanted if comparable(setting.facts, row)]
    rows = [*fitting, *(row for row in same if row not in fitting)]
    notes = []
    if others := len(wanted) - len(rows):
        notes.append(f"{others} published rows of other methods are not comparable and are not shown.")
    memory = [name for name in published.unverified() if not methods or name in methods]
    if memory:
        notes.append(f"Not shown, because noted from memory and not looked up yet: {', '.join(memory)}.")
    return rows, notes


def _averages(setting: Setting, entries: list[Entry], rows: list[Published], complete: str | None) -> Table:
    columns = ["method", "compared", "params (M)", "seeds", *GROUPS, "3 groups", "19 tasks"]
    table = Table(
        "Accuracy in %, mean of each group, of the three group means, and of the nineteen tasks",
        columns,
        words=("compared",),
    )
    ours = []
    for entry in entries:
        done, mean, seeds = len(entry.runs), entry.averages, entry.by_seed()
        groups = []
        for group in GROUPS:
            names = tasks_of(group)
            part = f"{sum(task in entry.runs for task in names)} of {len(names)}"
            groups.append(_value(mean.groups[group], [one.groups[group] for one in seeds], part))
        both = [
            _value(getattr(mean, name), [getattr(one, name) for one in seeds]) for name in ("group_mean", "task_mean")
        ]
        state = "ours" if done == len(TASKS) else f"ours, {done} of {len(TASKS)} tasks"
        ours.append([entry.label, state, f"{entry.params_m:.3f}", entry.seeds, *groups, *both])
    for fits in (True, False):
        part = [row for row in rows if row.averages.stated and comparable(setting.facts, row) is fits]
        table.parts.append([_published_line(setting, row, complete) for row in part])
    table.parts = [ours, *filter(None, table.parts)]
    return table


def _published_line(setting: Setting, row: Published, complete: str | None) -> list[str]:
    mean = row.averages
    params = "-" if row.params_m is None else f"{row.params_m:.3f}"
    values = [*(mean.groups[group] for group in GROUPS), mean.group_mean, mean.task_mean]
    return [_label(row), verdict(setting.facts, row, complete), params, "-", *map(_value, values)]


def _per_task(title: str, entries: list[Entry], rows: list[Published], tasks: list[str]) -> Table:
    table = Table(title, ["method", "seeds", *(SHORT.get(task, task) for task in tasks)])
    table.parts = [[[entry.label, entry.seeds, *(_over_seeds(entry, task) for task in tasks)] for entry in entries]]
    if rows:
        facts = entries[0].setting.facts
        lines = []
        for row in rows:
            told = _label(row) + ("" if comparable(facts, row) else ", not comparable")
            lines.append([told, "-", *(_value(row.per_task.get(task)) for task in tasks)])
        table.parts.append(lines)
    return table


def _over_seeds(entry: Entry, task: str) -> str:
    values = entry.accuracies.get(task)
    return _value(fmean(values), list(values)) if values else "-"


def _label(row: Published) -> str:
    return f"{row.method} [{row.family}]"


def _value(mean: float | None, seeds: Sequence[float | None] = (), otherwise: str = "-") -> str:
    """`81.52 ± 0.12`, the deviation where there are several seeds."""
    if mean is None:
        return otherwise
    deviation = spread([value for value in seeds if value is not None])
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def _record(entry: Entry, tasks: list[str]) -> dict[str, Any]:
    setting, seeds = entry.setting, entry.by_seed()
    record = {
        "kind": "ours",
        "suite": setting.suite,
        "protocol": setting.protocol,
        "setting": str(setting),
        "method": entry.label,
        "params_m": entry.params_m,
        "seeds": entry.seeds,
        "tasks": len(entry.runs),
        "compared": "",
        "notes": "; ".join(entry.notes),
    }
    for task in tasks:
        if values := entry.accuracies.get(task):
            record |= {task: fmean(values), f"{task} sd": spread(values)}
    return record | (_average_columns(entry.averages, seeds) if setting.suite == "VTAB-1k" else {})


def _average_columns(mean: Averages, seeds: Sequence[Averages] = ()) -> dict[str, Any]:
    columns: dict[str, Any] = dict(mean.groups)
    for name in ("group_mean", "task_mean"):
        value = getattr(mean, name)
        columns[name] = value
        columns[f"{name} sd"] = None if value is None else spread([getattr(one, name) for one in seeds])
    return columns


def _published_record(setting: Setting, row: Published, complete: str | None) -> dict[str, Any]:
    return {
        "kind": "published",
        "suite": "VTAB-1k",
        "protocol": row.family,
        "setting": row.backbone,
        "method": row.method,
        "params_m": row.params_m,
        "tasks": len(row.per_task) or None,
        "compared": verdict(setting.facts, row, complete),
        "notes": "; ".join(row.notes),
        "source": row.source,
        **row.per_task,
        **_average_columns(row.averages),
    }
