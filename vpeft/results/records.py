"""The lines of a report for a spreadsheet: numbers in full, None is not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from vpeft.data.tables import EMBEDDED
from vpeft.results.averages import GROUPS, TASKS, VTAB_GROUPS, Averages
from vpeft.results.compare import verdict
from vpeft.results.entry import Entry, Groups
from vpeft.results.published import Published
from vpeft.results.setting import Setting
from vpeft.results.statistics import interval, spread

_FIRST = ("kind", "suite", "protocol", "setting", "method", "params_m", "seeds", "tasks", "tuned")
_BOTH = ("group_mean", "task_mean")
_EACH = ("", " sd", " ci95")
_COST = ("device", "step_seconds", "images_per_second", "peak_bytes")
_LAST = ("compared", "notes", "source")


def record(entry: Entry, tasks: list[str], groups: Groups) -> dict[str, Any]:
    """A method's line."""
    setting, rows, calibration = entry.setting, list(entry.rows()), entry.calibration
    found: dict[str, Any] = {
        "kind": "ours",
        "suite": setting.suite,
        "protocol": setting.protocol,
        "setting": str(setting),
        "method": entry.label,
        "params_m": entry.params_m,
        "seeds": entry.seeds,
        "tasks": len(entry.runs),
        "tuned": sum(bool(row.get("tuning")) for row in rows),
        "compared": "",
        "notes": "; ".join(entry.notes),
    }
    for task in tasks:
        name = column(task)
        if values := entry.accuracies.get(task):
            found |= {name: fmean(values), f"{name} sd": spread(values), f"{name} ci95": interval(values)}
        if values := calibration.get(task):
            found[f"{name} ece"] = fmean(values)
    if calibration and all(task in calibration for task in tasks):
        found["ece"] = fmean(fmean(values) for values in calibration.values())
    costs = entry.costs()
    if len(costs) == 1:  # of several machines there is no one number
        ((machine, cost),) = costs.items()
        found |= {"device": str(machine), **{name: getattr(cost, name) for name in _COST[1:]}}
    return found | _averages(entry.averages(groups), entry.by_seed(groups))


def column(task: str) -> str:
    """The heading of a task's accuracy: its name, or `task 'NAME'` where another column is called so."""
    others = {*_FIRST, *VTAB_GROUPS, *_BOTH, "ece", *_COST, *_LAST}
    alike = task.startswith("task '") or task.endswith((*_EACH[1:], " ece"))
    return f"task '{task}'" if task in others or alike else task


def published_record(setting: Setting, row: Published, complete: str | None) -> dict[str, Any]:
    """A published row's line."""
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
        **_averages(row.averages),
    }


def _averages(mean: Averages, seeds: Sequence[Averages] = ()) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    pairs = [(name, mean.groups[name], [one.groups[name] for one in seeds]) for name in mean.groups if name in GROUPS]
    pairs += [(name, getattr(mean, name), [getattr(one, name) for one in seeds]) for name in _BOTH]
    for name, value, values in pairs:
        there = [one for one in values if one is not None] if value is not None else []
        columns |= {name: value, f"{name} sd": spread(there), f"{name} ci95": interval(there)}
    return columns


def as_csv(records: list[dict[str, Any]]) -> str:
    """One line a method and setting."""
    used = {key for one in records for key in one}
    means = list(chain(*([f"{name}{more}" for more in _EACH] for name in (*VTAB_GROUPS, *_BOTH))))
    known = {*_FIRST, *means, "ece", *_COST, *_LAST}
    measured = {key.removesuffix(" sd").removesuffix(" ci95").removesuffix(" ece") for key in used - known}
    tasks = [task for task in [*TASKS, *EMBEDDED] if task in measured]
    tasks += sorted(measured - set(tasks))
    columns = [*_FIRST, *chain(*([f"{task}{more}" for more in (*_EACH, " ece")] for task in tasks)), *means, "ece"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *_COST, *_LAST], lineterminator="\n")
    writer.writerow({name: _words(name) for name in writer.fieldnames})
    writer.writerows({name: _words(value) for name, value in one.items()} for one in records)
    return text.getvalue()


def _words(value: Any) -> Any:
    """A text that a spreadsheet would compute is one that it shows."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
