"""How the members of a suite stand; it follows from rows, notes and locks, so it survives any crash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vpeft.suite.choice import Incomplete, choose
from vpeft.suite.code import difference
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member, Phase

# In the order of a status table. `diverged`, of tuning alone, is a result: the loss of that setting is no number.
KINDS = ("done", "diverged", "running", "failed", "interrupted", "stale", "waiting")
# What a note says of a member that had not come to its end.
_UNFINISHED = ("running", "failed", "interrupted")


@dataclass(frozen=True)
class State:
    """How a member stands.

    Args:
        kind: One of `KINDS`.
        why: What it failed with, or what it is stale against.
        row: Of a member that is done, or the one that is stale.
    """

    kind: str
    why: str = ""
    row: Mapping[str, Any] | None = None


def states(folder: SuiteFolder, members: Iterable[Member], code: str) -> dict[str, State]:
    """The state of members under the present code, by id.

    Args:
        folder: Of the suite.
        members: Which ones; tuning members are to stand before the final ones that need them.
        code: `vpeft.suite.code.identity()`.
    """
    known = folder.members()
    rows: dict[Phase, list[dict[str, Any]]] = {"tuning": folder.rows("tuning"), "final": folder.rows("final")}
    by_id = {row["suite"]["member"]: row for both in rows.values() for row in both}  # the last of each
    by_cell = {known[key].cell: key for key in by_id if key in known}
    found: dict[str, State] = {}
    for member in members:
        row = by_id.get(member.id)
        if row is not None:
            found[member.id] = _measured(folder, member, row, known, found, code)
            continue
        state = _noted(folder, member.id, code)
        older = by_cell.get(member.cell)
        if state.kind == "waiting" and older is not None:
            state = State("stale", f"finished under other settings: {_differences(known[older], member)}", by_id[older])
        found[member.id] = state
    return found


def current_rows(folder: SuiteFolder, code: str) -> list[Mapping[str, Any]]:
    """Rows of final members that are not stale."""
    found = states(folder, folder.current(), code)
    return [state.row for state in found.values() if state.kind == "done" and state.row and state.row["test"]]


def _measured(
    folder: SuiteFolder,
    member: Member,
    row: Mapping[str, Any],
    known: Mapping[str, Member],
    found: Mapping[str, State],
    code: str,
) -> State:
    if row["suite"]["code"] != code:
        again = _noted(folder, member.id, code)
        return again if again.kind != "waiting" else State("stale", f"finished under {difference(row)}", row)
    note = folder.note(member.id)
    values = row["tuning"] and row["tuning"]["chosen"]
    if note.get("status") in _UNFINISHED and (note.get("code"), note.get("values")) == (code, values):
        # Killed behind its row: going on, it marks its folder as finished.
        return _noted(folder, member.id, code)
    chosen = _choice(folder, member, known, found)
    if chosen is not None and chosen != row["tuning"]["chosen"]:
        return State("stale", f"finished with {row['tuning']['chosen']}, and {chosen} is chosen now", row)
    return State("done", row=row)


def _choice(folder: SuiteFolder, member: Member, known: Mapping[str, Member], found: Mapping[str, State]) -> Any:
    if not member.grid or any(key not in found or key not in known for key in member.needs):
        return None
    try:
        return choose(folder, member, known, found)["chosen"]
    except Incomplete:
        return None


def _noted(folder: SuiteFolder, key: str, code: str) -> State:
    note = folder.note(key)
    if folder.is_held(key):
        return State("running")
    if note.get("code") != code:
        return State("waiting")
    # Whoever was running it is gone without a word.
    kind = "interrupted" if note["status"] == "running" else note["status"]
    return State("waiting" if kind == "done" else kind, note.get("error", ""))


def _differences(before: Member, now: Member, most: int = 3) -> str:
    old, new = _flat(before.settings | {"sweep": before.grid}), _flat(now.settings | {"sweep": now.grid})
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    told = [f"{key} was {old.get(key)} and is {new.get(key)}" for key in keys[:most]]
    return ", ".join(told) + (f", and {len(keys) - most} more" if len(keys) > most else "")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
