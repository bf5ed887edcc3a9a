"""Processes that are killed at a chosen point: before a change of a file, in the middle of one, or after some time.

Everything that a command does to its files goes through Python's audit events (`open`, `os.rename`, ...). A hook counts
those below one folder and kills before the one that is asked for, so each state in which SIGKILL can leave a folder is
reached by a number. Commands run in processes forked from one that has made their imports, which else take seconds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

# Audit event -> which of its arguments is the file that appears, changes or goes.
CHANGES = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CONTEXT = multiprocessing.get_context("forkserver")
# The last ones are what tools import when they know that they are asked rightly.
_CONTEXT.set_forkserver_preload(
    ["tests.faults.trained", "tests.faults.prepared", "vpeft.search", "vpeft.suite.command", "vpeft.suite.work"]
)


@dataclass(frozen=True)
class Strike:
    """Where a command is killed.

    Args:
        event: Before which change; `*` is any of CHANGES.
        name: Pattern of the changed file's name.
        count: The how many-th such change of the command and its processes together.
        torn: Leave half of what was being written: of a file that is about to be renamed, or of a line about to be
            appended.
        after: Seconds after which it is killed, in place of a change.
        alone: Kill one process, the one that makes the change or the command's first; else all of them.
    """

    event: str = "*"
    name: str = "*"
    count: int = 1
    torn: bool = False
    after: float | None = None
    alone: bool = False

    def __str__(self) -> str:
        who = "one process" if self.alone else "all"
        if self.after is not None:
            return f"after {self.after:.2f} s, {who}"
        return f"{'in' if self.torn else 'before'} {self.event} {self.name} ({self.count}), {who}"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Of its first process; -9 where that was killed.
        struck: Where it was killed, None where it was not.
        changes: How many it made.
        seconds: It took, if it was not killed.
        others: Process ids that it left behind when it was killed.
    """

    code: int
    struck: str | None
    changes: int
    seconds: float
    others: list[int]


def run(command: Callable[[], None], folder: Path, log: Path, strike: Strike | None = None) -> Ended:
    """Run a command in a process of its own.

    Args:
        command: Can be pickled; ends as a tool does, with SystemExit.
        folder: Whose changes are counted.
        log: To which its output is appended.
        strike: Where it is killed.
    """
    said = log.with_suffix(".json")
    said.unlink(missing_ok=True)
    process = _CONTEXT.Process(target=_begin, args=(command, folder, log, said, strike))
    process.start()
    assert process.pid is not None
    struck, others = None, []
    if strike and strike.after is not None:
        process.join(strike.after)
        if process.is_alive():
            others = _kill(process.pid, strike.alone)
            struck = f"after {strike.after:.2f} s"
    process.join()
    told = json.loads(said.read_text()) if said.exists() else {}
    code = process.exitcode if process.exitcode is not None else 1
    if code == 0:  # it was faster
        struck = None
    others = told.get("others", others)
    return Ended(code, told.get("struck", struck), told.get("changes", 0), told.get("seconds", 0), others)


def gone(pids: Sequence[int], seconds: float = 60) -> bool:
    """Wait until these processes have ended."""
    end = time.monotonic() + seconds
    while living := [pid for pid in pids if _parent(pid) is not None]:
        if time.monotonic() > end:
            print(f"still running: {living}", file=sys.stderr)
            return False
        time.sleep(0.05)
    return True


def _begin(command: Callable[[], None], folder: Path, log: Path, said: Path, strike: Strike | None) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for the command's own processes, as where it is not forked
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    watch, started = _Watch(folder, said, strike), time.monotonic()
    sys.addaudithook(watch)
    try:
        command()
    finally:
        sys.stdout.flush()
        if not said.exists():  # one of its processes may have been killed
            said.write_text(json.dumps({"changes": watch.changes.value, "seconds": time.monotonic() - started}))


class _Watch:
    """The hook; what it counts is shared with all processes that are forked from here."""

    def __init__(self, folder: Path, said: Path, strike: Strike | None) -> None:
        self.folder, self.said, self.strike = f"{folder}{os.sep}", said, strike
        self.changes, self.seen, self.first = RawValue("l", 0), RawValue("l", 0), os.getpid()

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        file = given[CHANGES[event]]
        if isinstance(file, int) or (event == "open" and not _writing(given)):
            return
        file = os.path.abspath(os.fsdecode(file))
        if not file.startswith(self.folder):
            return
        self.changes.value += 1
        if (
            self.strike is None
            or self.strike.after is not None
            or not fnmatch(os.path.basename(file), self.strike.name)
        ):
            return
        if fnmatch(event, self.strike.event):
            self.seen.value += 1
            if self.seen.value == self.strike.count:
                self._strike(event, file, os.fsdecode(given[0]), self.strike)

    def _strike(self, event: str, file: str, source: str, strike: Strike) -> None:
        if strike.torn:
            _tear(event, source)
        others = [pid for pid in [self.first, *_descendants(self.first)] if pid != os.getpid()]
        about = {"struck": f"{event} {file}", "changes": self.changes.value, "others": others}
        self.said.write_text(json.dumps(about))
        if not strike.alone:
            _end(others)
        os.kill(os.getpid(), signal.SIGKILL)


def _writing(given: tuple[Any, ...]) -> bool:
    _, mode, flags = given
    return bool(set(mode) & set("wax+")) if mode is not None else bool(flags & _WRITES)


def _tear(event: str, file: str) -> None:
    if event == "os.rename":
        os.truncate(file, os.path.getsize(file) // 2)
    else:
        with open(file, "ab", buffering=0) as opened:
            opened.write(b'{"id": "torn", "te')


def _kill(pid: int, alone: bool) -> list[int]:
    others = _descendants(pid)
    _end([pid] if alone else [pid, *others])
    return others


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    parents = {int(name): _parent(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
    found, new = [], [pid]
    while new:
        new = [one for one, parent in parents.items() if parent in new]
        found += new
    return found


def _parent(pid: int) -> int | None:
    """None of a process that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)
