"""Result rows of many runs -> entries: one method under one setting, all its tasks and seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpeft.results.entry import Entry
from vpeft.results.file import numbered_rows
from vpeft.results.setting import Setting, digest, fingerprint, setting_of, variant


def find(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of files, and of every results.jsonl below folders.

    Returns:
        The rows, and a sentence for every line that is not a result row.

    Raises:
        FileNotFoundError: A path is neither, or a folder holds no results.jsonl.
    """
    rows, notes, seen = [], [], set()
    for path in paths:
        for file in _files(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            searched, found = 0, []
            for number, row in numbered_rows(file):
                if row is not None and row.get("test", row) is None:
                    searched += 1
                    continue
                fault = "not a whole result row" if row is None else _fault(row)
                if row is None or fault:
                    notes.append(f"{file}, line {number}: {fault}; it is left out.")
                else:
                    found.append(row)
            held = {_place(row) or at: row for at, row in enumerate(found)}
            rows += held.values()
            if replaced := len(found) - len(held):
                why = "because their place in the suite was run again"
                notes.append(f"{file}: left out, {why}: {replaced} of {len(found)} rows.")
            if searched:
                notes.append(f"{file}: left out, because a search does not test them: {searched} rows.")
    return rows, notes


def _place(row: Mapping[str, Any]) -> tuple[str, str, int] | None:
    """Method, task and seed of a suite's row: of two in one place the later one holds."""
    return (row["suite"]["method"], row["task"], row["seed"]) if "suite" in row else None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give results.jsonl files, or folders that hold some.")
    found = sorted(path.rglob("results.jsonl"))
    if not found:
        raise FileNotFoundError(f"{path} holds no results.jsonl, nor does a folder below it.")
    return found


def _fault(row: Mapping[str, Any]) -> str | None:
    """Why a mapping is no result row, or None."""
    try:
        setting = setting_of(row)
        fingerprint(row)
        words = [value for key, value in vars(setting).items() if key != "lossy"]
        words += [row["task"], *(spec["name"] for spec in row["method"])]
        if "suite" in row:
            words += [row["suite"]["method"], row["suite"]["code"]]
        if (
            not isinstance(setting.lossy, bool)
            or not all(isinstance(word, str) for word in words)
            or not isinstance(row["seed"], int)
        ):
            return "a result row of another form (its task, seed, method or setting is no text or number)"
        counts = [row["parameters"][name] + 0 for name in ("method", "adopted")]
        told = row.get("protocol")
        if told is not None and not all(isinstance(key, str) for key in told["changed"]):
            return "a result row of another form (what departs from its protocol is no list of settings)"
        if not isinstance(row.get("id", ""), str) or not isinstance(row.get("date", ""), str):
            return "a result row of another form (its id or date is no text)"
        accuracy, names = row["test"]["accuracy"], [spec["name"] for spec in row["method"]]
        if not 0 <= accuracy <= 1:
            return f"test accuracy is {accuracy}, not a fraction from 0 to 1"
        if not names or not all(0 <= count < math.inf for count in counts):
            return f"a result row with {len(names)} methods and {' and '.join(map(str, counts))} trained parameters"
    except KeyError as error:
        return f"a result row without {error}"
    except (TypeError, AttributeError, ValueError) as error:
        return f"a result row of another form ({error})"
    return None


def without_repeats(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Each run once, and the last of those with the same fingerprint; which one does not depend on its accuracy."""
    by_id = {row.get("id") or digest(row): row for row in sorted(rows, key=lambda row: str(row.get("date")))}
    kept: dict[str, dict[str, Any]] = {}
    repeated: dict[str, list[dict[str, Any]]] = {}
    for row in by_id.values():
        mark = fingerprint(row)
        if mark in kept:
            repeated.setdefault(mark, []).append(kept[mark])
        kept[mark] = row
    notes = []
    for mark, older in repeated.items():
        row = kept[mark]
        values = {f"{100 * one['test']['accuracy']:.2f}" for one in [*older, row]}
        told = f", and their accuracies differ: {', '.join(sorted(values))}" if len(values) > 1 else ""
        notes.append(
            f"{_names(row['method'])} on {row['task']}, seed {row['seed']}: {len(older) + 1} runs under the same "
            f"settings, of which the last counts ({row.get('id')}, {row.get('date')}){told}."
        )
    return list(kept.values()), notes


def entries_of(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Rows by setting and method; hyper-parameters may differ between tasks, but not within one.

    The method of a suite's row is its config, and rows of different code are not mixed. A suite that chose nothing
    trains all tasks alike: what differs between its tasks was finished under other settings, and is not mixed either.
    """
    groups: dict[tuple[Setting, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        code = row["suite"]["code"] if "suite" in row else ""
        groups.setdefault((setting_of(row), name_of(row), code), []).append(row)
    alike = Counter((setting, name) for setting, name, _ in groups)
    found: list[Entry] = []
    for (setting, name, code), group in sorted(groups.items(), key=lambda item: item[0]):
        label = name
        if alike[setting, name] > 1:
            label += f" (code {code})" if code else " (outside the suite)"
        per_task: dict[str, set[str]] = {}
        for row in group:
            per_task.setdefault(row["task"], set()).add(digest(variant(row)))
        whole = all(len(variants) == 1 for variants in per_task.values())
        if any("suite" in row and not row.get("tuning") for row in group):
            whole = whole and len(set.union(*per_task.values())) == 1
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for row in group:
            parts.setdefault("" if whole else digest(variant(row)), []).append(row)
        differing = _differing([variant(row) for row in group])
        new = [_entry(setting, part, label, differing, whole) for part in parts.values()]
        found += sorted(new, key=lambda entry: entry.label)
    return found


def _entry(setting: Setting, rows: list[Mapping[str, Any]], label: str, differing: list[str], whole: bool) -> Entry:
    entry = Entry(setting, rows[0]["method"], label=label)
    for row in rows:
        entry.runs.setdefault(row["task"], {})[row["seed"]] = row
    if differing and whole:
        entry.notes.append(f"settings differ between tasks: {', '.join(differing)}")
    elif differing:
        told = variant(rows[0])
        entry.label += f" ({', '.join(f'{key} {told[key]}' for key in differing if key in told)})"
    changed = sorted({key for row in rows for key in (row.get("protocol") or {"changed": {}})["changed"]})
    if changed:
        entry.notes.append(f"departs from {setting.protocol} in {', '.join(changed)}")
    skipped = {row["task"]: row["data"]["skipped"] for row in rows if row["data"].get("skipped")}
    if skipped:
        told = ", ".join(f"{task} {count:,}" for task, count in skipped.items())
        entry.notes.append(f"unreadable images were left out of training or test ({told})")
    return entry


def _differing(variants: list[dict[str, Any]]) -> list[str]:
    keys = {key: None for one in variants for key in one}
    return [key for key in keys if len({digest(one.get(key)) for one in variants}) > 1]


def name_of(row: Mapping[str, Any]) -> str:
    """The suite's name of a row's method, or the names of its methods."""
    return row["suite"]["method"] if "suite" in row else _names(row["method"])


def _names(method: Iterable[Mapping[str, Any]]) -> str:
    return "+".join(spec["name"] for spec in method)
