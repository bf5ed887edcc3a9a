"""Where the rows come from: code, versions, devices, dates, and whether their settings were searched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vpeft.results.entry import Entry
from vpeft.results.tables import SHORT, Table

_COMMIT = 10


def provenance_table(entries: list[Entry]) -> Table:
    """Which code made a method's rows, when, on what, and whether its settings were searched."""
    lines = []
    for entry in entries:
        rows = list(entry.rows())
        tuned = sum(bool(row.get("tuning")) for row in rows)
        lines.append(
            [
                entry.label,
                f"{len(rows)}",
                "yes" if tuned == len(rows) else f"{tuned} of {len(rows)}" if tuned else "no",
                _counted(code(row) for row in rows),
                _counted(_device(row) for row in rows),
                _dates(rows),
            ]
        )
    return Table(
        "Where the rows come from",
        ["method", "runs", "tuned", "code", "devices", "ended"],
        words=("tuned", "code", "devices", "ended"),
        parts=[lines],
        note="Tuned: a search on val200 chose the settings. Code: of a suite's runs the version and a hash of the "
        "package's files; of others the commit, -dirty where files differed from it.",
    )


def chosen_table(entries: list[Entry], tasks: list[str]) -> Table | None:
    """What a search chose for every task; None where nothing was searched."""
    lines, swept, sizes = [], set(), set()
    for entry in entries:
        cells = []
        for task in tasks:
            tunings = [_mapping(row.get("tuning")) for row in entry.runs.get(task, {}).values()]
            told = dict.fromkeys(_values(_mapping(tuning.get("chosen"))) for tuning in tunings if tuning)
            cells.append(" or ".join(told) or "-")
            swept |= {key for tuning in tunings for key in _mapping(tuning.get("grid"))}
            sizes |= {len(tuning["members"]) for tuning in tunings if isinstance(tuning.get("members"), list)}
        if set(cells) != {"-"}:
            lines.append([entry.label, *cells])
    if not lines:
        return None
    columns = [SHORT.get(task, task) for task in tasks]
    of = f" of {min(sizes)}{f' to {max(sizes)}' if len(sizes) > 1 else ''} points" if sizes else ""
    searched = f": {', '.join(sorted(swept))}" if swept else ""
    return Table(
        f"Settings chosen on val200{searched}",
        ["method", *columns],
        words=tuple(columns),
        parts=[lines],
        note=f"The best{of} of the grid on val200, trained on the other 800 images; the test split took no part.",
    )


def _values(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())


def provenance_notes(entries: list[Entry]) -> list[str]:
    """Versions of the libraries, and whatever was mixed."""
    rows = [row for entry in entries for row in entry.rows()]
    notes = []
    codes = [code(row) for row in rows]
    if len(set(codes)) > 1:
        notes.append(
            f"The code changed between these runs: {_counted(codes)}. Run the older ones again before you read small "
            "differences."
        )
    commits = [commit(row) for row in rows]
    notes.append(f"Commits: {_counted(commits)}.")
    if changed := sum(name.endswith("-dirty") for name in commits):
        notes.append(f"{changed} of {len(rows)} runs were made by code that differed from its commit.")
    libraries = {name: None for row in rows for name in _mapping(row.get("versions"))}
    versions = []
    for name in libraries:
        found = [str(_mapping(row.get("versions")).get(name, "not recorded")) for row in rows]
        versions.append(f"{name} {found[0] if len(set(found)) == 1 else _counted(found)}")
    if versions:
        notes.append(f"Versions: {', '.join(versions)}.")
    synthetic = sorted({row["task"] for row in rows if row["data"].get("synthetic")})
    if synthetic:
        notes.append(f"Synthetic tasks: {', '.join(synthetic)}.")
    tuned = {bool(row.get("tuning")) for row in rows}
    if len(tuned) > 1:
        notes.append("Some of these runs were tuned on val200 and some were not; see where the rows come from.")
    return notes


def code(row: Mapping[str, Any]) -> str:
    """What tells the code of a row from other code: a suite's hash of the package, or the commit."""
    return str(_mapping(row.get("suite")).get("code") or commit(row))


def commit(row: Mapping[str, Any]) -> str:
    """The commit that made a row, shortened."""
    name, mark, dirty = str(row.get("git") or "not recorded").partition("-dirty")
    return (name[:_COMMIT] if row.get("git") else name) + mark + dirty


def _device(row: Mapping[str, Any]) -> str:
    return str(_mapping(row.get("device")).get("name") or "not recorded")


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _counted(words: Iterable[str]) -> str:
    """`a` if all are, or else `a (3), b (1)`."""
    counts = Counter(words)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{word} ({count})" for word, count in counts.items())


def _dates(rows: Sequence[Mapping[str, Any]]) -> str:
    days = sorted({str(row["date"])[:10] for row in rows if row.get("date")})
    return "not recorded" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
