"""What a suite says in the terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vpeft.duration import duration
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member
from vpeft.suite.settings import Request
from vpeft.suite.states import KINDS, State

# Codes of `vpeft.suite.worker` with which nothing has failed.
_CODES = {"code 4": "its settings were not chosen yet, or it was stale", "code 5": "another process had it"}
LETTERS = {kind: kind[0].upper() for kind in KINDS} | {"diverged": "X"}


class Progress:
    """Lines of what ended, and on a terminal one that is drawn anew with what goes on.

    Args:
        folder: Of the suite.
        total: Members that are to be run.
        jobs: Processes.
        retries: Further attempts at a failed member.
    """

    def __init__(self, folder: SuiteFolder, total: int, jobs: int, retries: int) -> None:
        self.folder, self.total, self.jobs, self.retries = folder, total, jobs, retries
        self.ended: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.started = time.monotonic()
        self.live = sys.stdout.isatty()

    def note(self, member: Member, kind: str, why: str, said: Mapping[str, Any] | None) -> None:
        """Say what happened to a member."""
        if kind == "running":
            return
        if kind in ("failed", "interrupted"):
            self.attempts[member.id] += 1
            last = self.attempts[member.id] > self.retries
            next_ = ("given up" if last else "tried again") if kind == "failed" else "resumed when it is run again"
            why = f"{why}; {next_}; log {self.folder.log(member)}"
            if kind == "failed" and last:
                self.ended.add(member.id)
        else:
            self.ended.add(member.id)
        if kind == "done" and said:
            why = f"{said['part']} {100 * said['accuracy']:.2f} % in {duration(said['seconds'])}"
        self._line(f"[{len(self.ended)}/{self.total}] {kind}: {member.title}: {why}")

    def tick(self, waiting: int, running: Sequence[Member]) -> None:
        """Draw the last line anew."""
        if not self.live:
            return
        done = len(self.ended)
        left = (
            f", about {duration((time.monotonic() - self.started) / done * (self.total - done))} left" if done else ""
        )
        at = "; ".join(member.title for member in running)
        text = f"{done} of {self.total} ended, {len(running)} running, {waiting} waiting{left}: {at}"
        print(f"\r\x1b[K{text[:118]}", end="", flush=True)

    def _line(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.live else text, flush=True)


def opening(
    folder: SuiteFolder, request: Request, members: Sequence[Member], found: Mapping[str, State], todo: int
) -> str:
    """What the suite consists of and what is left of it."""
    methods = list(dict.fromkeys(one.method for one in members))
    tuning = sum(one.phase == "tuning" for one in members)
    lines = [
        f"{folder.path}: {_count(len(methods), 'method')} x {_count(len(request.tasks), 'task')} x "
        f"{_count(len(request.seeds), 'seed')}: {_count(len(members), 'run')}"
        + (f", {tuning} of them to choose settings on val200" if tuning else "")
        + f"; {_totals(found.values())}; {todo} to run."
    ]
    stale = [(one, found[one.id]) for one in members if found[one.id].kind == "stale"]
    if stale and not request.rerun:
        one, state = stale[0]
        lines.append(
            f"{_count(len(stale), 'run')} stale, such as {one.title}: {state.why}. --rerun stale runs them anew."
        )
    return "\n".join(lines)


def status(folder: SuiteFolder, members: Sequence[Member], found: Mapping[str, State]) -> str:
    """Methods x tasks with counts, and what failed with its last line."""
    parts = [f"{folder.path}: {_totals(found.values())}"]
    phases = {"tuning": "Settings on val200", "final": "Final runs"}
    for phase, title in phases.items():
        chosen = [one for one in members if one.phase == phase]
        if chosen:
            parts += ["", title, *_grid(chosen, found)]
    used = [kind for kind in KINDS if any(state.kind == kind for state in found.values())]
    parts += ["", ", ".join(f"{LETTERS[kind]} {kind}" for kind in used)]
    for one in members:
        state = found[one.id]
        if state.kind in ("failed", "diverged"):
            parts.append(f"{state.kind}: {one.title}: {state.why}")
            if state.kind == "failed":
                parts.append(f"    log {folder.log(one)}")
    stale = [(one, found[one.id]) for one in members if found[one.id].kind == "stale"]
    for why in dict.fromkeys(state.why for _, state in stale):
        same = [one for one, state in stale if state.why == why]
        parts.append(f"stale: {_count(len(same), 'run')}, such as {same[0].title}: {why}")
    return "\n".join(parts)


def jobs(folder: SuiteFolder, name: str) -> str:
    """The states of a suite's items under Slurm, and what is wrong with those that did not end well."""
    from vpeft import slurm

    known = slurm.members(folder.path / "slurm", name)
    counts = Counter(one.state for one in known.values())
    lines = ["", "Slurm: " + ", ".join(f"{count} {state}" for state, count in counts.items())]
    for one in known.values():
        if one.state in ("failed", "lost", "cancelled", "interrupted"):
            why = _CODES.get(one.reason, one.reason or "no reason")
            lines.append(f"{one.state}: item {one.index}, job {one.job}: {why}; log {one.folder}")
    return "\n".join(lines)


def _grid(members: Iterable[Member], found: Mapping[str, State]) -> list[str]:
    cells: dict[str, dict[str, Counter[str]]] = {}
    for one in members:
        cells.setdefault(one.method, {}).setdefault(one.task, Counter())[found[one.id].kind] += 1
    tasks = list(dict.fromkeys(task for row in cells.values() for task in row))
    table = [["", *tasks]]
    table += [[method, *(_cell(row.get(task)) for task in tasks)] for method, row in cells.items()]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]


def _cell(counts: Counter[str] | None) -> str:
    return " ".join(f"{counts[kind]}{LETTERS[kind]}" for kind in KINDS if counts[kind]) if counts else "-"


def _totals(found: Iterable[State]) -> str:
    counts = Counter(state.kind for state in found)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind] or kind == "done")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
