"""Runs beside published numbers: which sections, tables and figures there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.data.tables import ALIASES, EMBEDDED, VTAB
from vpeft.nearest import did_you_mean
from vpeft.results import measures, provenance, published, records, runs, tables
from vpeft.results.averages import GROUPS, TASKS, VTAB_GROUPS
from vpeft.results.compare import comparable
from vpeft.results.entry import Entry, Groups, complete_block
from vpeft.results.figures import Figure, draw
from vpeft.results.published import Published
from vpeft.results.setting import Setting
from vpeft.results.tables import Table

_TOLD = 5  # notes on the files, where they are all there is to say


@dataclass
class Section:
    """The tables and figures of one setting.

    Args:
        title: The protocol, or what kind of data it is.
        about: The setting in words.
        tables: Those of accuracy first.
        figures: May be none.
        notes: What a reader has to know.
        counts: Methods, tasks and runs, in words.
    """

    title: str
    about: str
    tables: list[Table]
    figures: list[Figure]
    notes: list[str]
    counts: str


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
    used = (name for row in rows for name in sorted(_called(row)))
    there = [row.spec["name"] for row in published.load() if row.spec]
    methods = _known("method", methods, there, used)
    if tasks:
        rows = [row for row in rows if row["task"] in tasks]
    if methods:
        rows = [row for row in rows if _called(row) & set(methods)]
    if not rows:
        asked = " for these tasks and methods; leave out --task or --method"
        told = asked if tasks or methods else "; give results.jsonl files of runs that ended"
        raise ValueError(" ".join([f"There is no result row to report{told}.", *notes[:_TOLD]]))
    rows, repeats = runs.without_repeats(rows)
    by_setting: dict[Setting, list[Entry]] = {}
    for entry in runs.entries_of(rows):
        by_setting.setdefault(entry.setting, []).append(entry)
    report = Report([], notes + repeats, [])
    for setting in sorted(by_setting, key=_order):
        _add(report, setting, by_setting[setting], tasks, methods)
    return report


def _called(row: Mapping[str, Any]) -> set[str]:
    """The names of a row's methods, and that of its config in a suite."""
    return {runs.name_of(row), *(spec["name"] for spec in row["method"])}


def _known(kind: str, given: Sequence[str], known: Iterable[str], used: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys([*used, *known]))
    for name in given:
        if name not in names:
            raise ValueError(f"command line: there is no {kind} '{name}'; {did_you_mean(name, names)}")
    return list(given)


def _order(setting: Setting) -> tuple[Any, ...]:
    return ("VTAB-1k", "embedded", "own").index(setting.suite), not setting.protocol, setting


def _add(report: Report, setting: Setting, entries: list[Entry], tasks: list[str], methods: list[str]) -> None:
    found = [task for task in [*TASKS, *EMBEDDED] if any(task in entry.runs for entry in entries)]
    found += sorted({task for entry in entries for task in entry.runs} - set(found))
    notes = [f"{entry.label}: {note}." for entry in entries for note in entry.notes]
    rows: list[Published] = []
    left_out: list[str] = []
    complete, groups = None, _groups(setting, found)
    if setting.suite != "VTAB-1k":
        notes.append("These are not VTAB results: no published number belongs beside them.")
    else:
        if setting.weights.startswith("file"):
            notes.append(
                "The weights came from a file: that they are those of the backbone's name is not checked here."
            )
        rows, left_out = _beside(setting, entries, methods)
        if not any(len(entry.runs) == len(TASKS) for entry in entries):
            counts = sorted({len(entry.runs) for entry in entries})
            many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            complete = f"tasks: ours are {many} of {len(TASKS)}, so there is no average of ours"
    wanted = found if tasks or setting.suite != "VTAB-1k" else list(TASKS)
    block = complete_block(entries, wanted)
    several = sum(map(len, groups.values())) > 1 and not tasks
    shown = [
        tables.average_table(setting, entries, rows, groups, complete) if several else None,
        tables.task_table(entries, rows, found),
        measures.rank_table(block) if len(block.entries) > 1 and len(block.tasks) > 1 else None,
        measures.calibration_table(entries, found),
        measures.cost_table(entries),
        provenance.chosen_table(entries, found),
        provenance.provenance_table(entries),
    ]
    if len(entries) > 1 and not block.tasks:
        notes.append("These methods have no task in common, so they are neither ranked nor drawn.")
    notes += provenance.provenance_notes(entries)
    notes += [f"{row.method} ({row.family}): {note}." for row in rows for note in row.notes]
    for source in dict.fromkeys(row.source for row in rows):
        notes.append(f"From {source}: {', '.join(tables.label(row) for row in rows if row.source == source)}.")
    kind = {"embedded": "Embedded tasks", "own": "Data of one's own"}.get(setting.suite, setting.suite)
    section = Section(
        f"{kind}, {f'protocol {setting.protocol}' if setting.protocol else 'no protocol named'}",
        str(setting),
        [table for table in shown if table],
        draw(block, [row for row in rows if comparable(setting.facts, row)]),
        notes + left_out,
        _counts(entries, found),
    )
    report.sections.append(section)
    report.records += [records.record(entry, found, groups) for entry in entries]
    report.records += [records.published_record(setting, row, complete) for row in rows]


def _groups(setting: Setting, tasks: list[str]) -> Groups:
    """The tasks of a setting by group: all of VTAB-1k, of others those that were run."""
    if setting.suite == "VTAB-1k":
        return VTAB_GROUPS
    if setting.suite == "embedded":
        of = {group: [task for task in tasks if task in EMBEDDED and EMBEDDED[task].group == group] for group in GROUPS}
        if sum(map(len, of.values())) == len(tasks):
            return {group: names for group, names in of.items() if names}
    return {"": tasks}


def _counts(entries: list[Entry], tasks: list[str]) -> str:
    amounts = {"method": len(entries), "task": len(tasks), "run": sum(len(list(entry.rows())) for entry in entries)}
    return ", ".join(f"{amount} {word}{'' if amount == 1 else 's'}" for word, amount in amounts.items())


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
