"""Processes of this machine that work through items: what takes seconds to import is imported once in each.

A process that dies marks its member as failed and is replaced; a signal to the suite is handed to every process once,
and each saves what it runs.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vpeft.suite import code
from vpeft.suite.choice import SETTLED
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.machine import share, visible_devices
from vpeft.suite.members import Item, Member
from vpeft.suite.worker import EVENTS

GRACE = 600.0  # seconds in which a stopped process may finish its step and save
AGAIN = 2.0  # seconds until a member that another suite runs is looked at again


@dataclass
class _Process:
    """One worker and what it is at.

    Args:
        place: Its number, which decides its GPU.
        handle: Of the process.
        events: What it says, as JSON lines.
        item: What it works on.
        running: Ids of members that it has started and not ended.
        ended: Ids of members of the item that it has said the end of.
        rest: Of `events`, a line that is not whole yet.
    """

    place: int
    handle: subprocess.Popen[bytes]
    events: BinaryIO
    item: Item | None = None
    running: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    rest: bytes = b""
    ready: bool = False


class Pool:
    """Works through items with several processes.

    Args:
        folder: Of the suite.
        members: By id.
        items: What is to be done; tuning first.
        settled: Ids of tuning members that are known already.
        jobs: Processes.
        retries: Further attempts at a failed member.
        stale: Whether stale members are run anew.
        show: Called with every event of a member: member, kind, reason, what its row says.
        tick: Called about once a second with the number of items that wait, and the members at work.
    """

    def __init__(
        self,
        folder: SuiteFolder,
        members: dict[str, Member],
        items: Sequence[Item],
        settled: set[str],
        jobs: int,
        retries: int,
        stale: bool,
        show: Callable[[Member, str, str, dict[str, Any] | None], None],
        tick: Callable[[int, list[Member]], None],
    ) -> None:
        self.folder, self.members, self.retries, self.stale = folder, members, retries, stale
        self.show, self.tick = show, tick
        self.waiting, self.settled = deque(items), set(settled)
        self.elsewhere: list[tuple[float, Item]] = []
        self.ended: dict[str, str] = {}
        self.attempts: Counter[str] = Counter()
        self.jobs = max(1, min(jobs, len(items)))
        self.devices = visible_devices()
        self.processes: list[_Process] = []
        self.selector = selectors.DefaultSelector()
        self.stopped: int | None = None
        self._deaths = 0

    def run(self) -> int | None:
        """Work until nothing can be done any more.

        Returns:
            The signal that stopped it, or None.

        Raises:
            RuntimeError: Processes die as soon as they are started.
        """
        with self._signals():
            try:
                for place in range(self.jobs):
                    self._start(place)
                while self.processes:
                    self._look_again()
                    self._hand_out()
                    for key, _ in self.selector.select(timeout=0.5):
                        self._hear(key.data)
                    self.tick(len(self.waiting), [self.members[one] for p in self.processes for one in p.running])
            finally:
                self._end()
        return self.stopped

    def _start(self, place: int) -> None:
        reading, writing = os.pipe()
        log = self.folder.path / "logs" / f"worker-{place}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "vpeft.suite.worker", str(self.folder.path), "--serve"]
        with log.open("ab") as printed:
            handle = subprocess.Popen(
                [*words, "--rerun", "stale"] if self.stale else words,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                env=os.environ | share(place, self.jobs, self.devices) | {EVENTS: str(writing)},
                pass_fds=[writing],
                start_new_session=True,  # a terminal's Ctrl-C would reach it twice, once through here
            )
        os.close(writing)
        process = _Process(place, handle, os.fdopen(reading, "rb", buffering=0))
        self.processes.append(process)
        self.selector.register(process.events, selectors.EVENT_READ, process)

    def _hand_out(self) -> None:
        """Give idle processes what can be done now, and send those home for whom nothing will come."""
        for process in list(self.processes):
            if process.item is not None or not process.ready:
                continue
            item = None if self.stopped else self._next()
            if item is not None:
                process.item, process.ended = item, set()
                _tell(process, item)
            elif self.stopped or not self._may_come():
                self._close_input(process)

    def _next(self) -> Item | None:
        for item in self.waiting:
            if all(need in self.settled for key in item.members for need in self.members[key].needs):
                self.waiting.remove(item)
                return item
        if self._busy() or self.elsewhere:
            return None
        # Nothing that runs can settle what the rest needs: each says so itself, and is listed as waiting.
        return self.waiting.popleft() if self.waiting else None

    def _busy(self) -> bool:
        return any(process.item is not None for process in self.processes)

    def _may_come(self) -> bool:
        return bool(self.waiting or self.elsewhere) or self._busy()

    def _hear(self, process: _Process) -> None:
        piece = process.events.read(65536)
        if not piece:
            self._bury(process)
            return
        *lines, process.rest = (process.rest + piece).split(b"\n")
        for line in lines:
            self._note(process, json.loads(line))

    def _note(self, process: _Process, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "ready":
            process.ready = True
        elif kind == "idle":
            self._deaths = 0
            item, process.item = process.item, None
            assert item is not None
            self._again(item)
        else:
            self._member(process, event["member"], kind, event["why"], event["said"])

    def _member(self, process: _Process, key: str, kind: str, why: str, said: dict[str, Any] | None) -> None:
        if kind == "running" and not why:
            if key not in process.running:  # a pack that failed as one goes on with each of its members
                process.running.append(key)
                self.attempts[key] += 1
        else:
            process.ended.add(key)
            if key in process.running:
                process.running.remove(key)
            elif kind == "failed":  # before it could say that it began
                self.attempts[key] += 1
            self.ended[key] = kind
            if kind in SETTLED:
                self.settled.add(key)
        self.show(self.members[key], kind, why, said)

    def _again(self, item: Item) -> None:
        """Put an item back whose members failed, while they have attempts left, or which another suite runs."""
        kinds = {key: self.ended.get(key) for key in item.members}
        failed = [key for key, kind in kinds.items() if kind in ("failed", "interrupted")]
        if any(self.attempts[key] > self.retries for key in failed):
            return
        if "running" in kinds.values():
            self.elsewhere.append((time.monotonic() + AGAIN, item))
        elif failed:
            self.waiting.append(item)

    def _look_again(self) -> None:
        due = [item for at, item in self.elsewhere if at <= time.monotonic()]
        self.elsewhere = [(at, item) for at, item in self.elsewhere if item not in due]
        self.waiting.extend(due)

    def _bury(self, process: _Process) -> None:
        """A process has ended: fine where it was sent home, else its members have failed."""
        self.selector.unregister(process.events)
        process.events.close()
        self.processes.remove(process)
        ended = process.handle.wait()
        if process.item is None and process.ready and ended == 0:
            return
        if self.stopped:
            for key in process.running:
                self._write_note(key, status="interrupted")
            return
        self._deaths += 1
        said = f"its process died of {signal.Signals(-ended).name}" if ended < 0 else f"its process ended with {ended}"
        if ended == -signal.SIGKILL:
            said += " (out of memory, or killed by hand)"
        for key in [key for key in (process.item.members if process.item else []) if key not in process.ended]:
            self._write_note(key, status="failed", error=said, code=code.identity())
            self._member(process, key, "failed", said, None)
        log = self.folder.path / "logs" / f"worker-{process.place}.log"
        if self._deaths > 3 and not process.ready:
            raise RuntimeError(f"Processes of the suite end as soon as they start ({said}); see {log}.")
        if process.item is not None:
            self._again(process.item)
        if self.waiting or self.elsewhere:
            self._start(process.place)

    def _write_note(self, key: str, **changes: str) -> None:
        """Note what a process that is gone cannot, unless another suite has its member already."""
        with self.folder.holding(key) as mine:
            if mine:
                self.folder.write_note(key, **changes)

    def _close_input(self, process: _Process) -> None:
        if process.handle.stdin and not process.handle.stdin.closed:
            process.handle.stdin.close()

    @contextmanager
    def _signals(self) -> Any:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        # The second time they end at once, and go on from their last whole epoch when they are resumed.
        sent = signal.SIGTERM if self.stopped is None else signal.SIGKILL
        self.stopped = self.stopped or number
        for process in self.processes:
            process.handle.send_signal(sent)

    def _end(self) -> None:
        """Leave no process behind, whatever happened here."""
        limit = time.monotonic() + GRACE
        for process in self.processes:
            self._close_input(process)
            process.handle.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.handle.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.handle.kill()
                process.handle.wait()
            process.events.close()
        self.selector.close()


def _tell(process: _Process, item: Item) -> None:
    assert process.handle.stdin is not None
    line = json.dumps({"index": item.index, "phase": item.phase, "members": item.members}) + "\n"
    try:
        process.handle.stdin.write(line.encode())
        process.handle.stdin.flush()
    except BrokenPipeError:
        pass  # it has died, which its other pipe says too
