"""What a suite keeps on disk. Several suites may share one folder at the same time.

suite.yaml        the request of the last command: files, tasks, seeds, grids
members.jsonl     one run a line; of two in one place of the grid the later one holds
items.jsonl       one work item a line; a line is never changed, so an index (of a job array) keeps its meaning
results.jsonl     rows of final members; each has a folder of its own beside it
tuning/           the same of tuning members, whose rows have no test
choices.json      chosen values by method and task, with what they were chosen from
notes/ID.json     how a member that has no row stands: running, failed, interrupted, ...
locks/ID.lock     held by the process that runs a member
logs/NAME.log     what a member printed
tensorboard/      the experiment that the members are the sessions of
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vpeft.config import ConfigError
from vpeft.fetch import sweep, write_atomic
from vpeft.results.file import append_row, read_rows
from vpeft.suite.members import Item, Member, Phase


@dataclass(frozen=True)
class SuiteFolder:
    """A suite on disk.

    Args:
        path: The folder.
    """

    path: Path

    def output(self, phase: Phase) -> Path:
        """Where members of a phase have their folders and their results.jsonl."""
        return self.path if phase == "final" else self.path / "tuning"

    def rows(self, phase: Phase) -> list[dict[str, Any]]:
        """All rows of a phase, stale ones too."""
        return [row for row in read_rows(self.output(phase) / "results.jsonl") if "suite" in row]

    def log(self, member: Member) -> Path:
        return self.path / "logs" / f"{member.name}.log"

    def members(self) -> dict[str, Member]:
        """Every member there was, by id."""
        return {row["id"]: Member(**row) for row in read_rows(self.path / "members.jsonl")}

    def current(self) -> list[Member]:
        """The members that hold: the last of every place of the grid, and the tuning members that those need."""
        lines = [Member(**row) for row in read_rows(self.path / "members.jsonl")]
        every = {one.id: one for one in lines}
        finals = {one.cell: one for one in lines if one.phase == "final"}
        needed = dict.fromkeys(key for final in finals.values() for key in final.needs)
        return [*(every[key] for key in needed), *finals.values()]

    def items(self) -> list[Item]:
        return [Item(**row) for row in read_rows(self.path / "items.jsonl")]

    def item(self, index: int) -> Item:
        """A line of items.jsonl.

        Raises:
            ConfigError: There is no such line.
        """
        items = {item.index: item for item in self.items()}
        if index not in items:
            has = f"has {len(items)} items, counted from 0" if items else "has no items.jsonl"
            raise ConfigError(f"{self.path} {has}; there is no item {index}")
        return items[index]

    def add(self, members: Sequence[Member], groups: Iterable[Sequence[Member]]) -> list[Item]:
        """Note members, and the items that groups of them make; what is known already is found again."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            holding = {Member(**row).cell: row["id"] for row in read_rows(self.path / "members.jsonl")}
            for member in members:
                if holding.get(member.cell) != member.id:
                    append_row(self.path / "members.jsonl", asdict(member))
            known = self.items()
            by_members = {tuple(item.members): item for item in known}
            chosen = []
            for group in groups:
                key = tuple(member.id for member in group)
                if key not in by_members:
                    by_members[key] = Item(len(by_members), group[0].phase, list(key))
                    append_row(self.path / "items.jsonl", asdict(by_members[key]))
                chosen.append(by_members[key])
        return chosen

    def note(self, key: str) -> dict[str, Any]:
        """How a member stood when it was last heard of; empty of one that never ran."""
        file = self.path / "notes" / f"{key}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write_note(self, key: str, **changes: Any) -> None:
        """Change what is noted of a member; for whoever holds it."""
        folder = self.path / "notes"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{key}.json", (json.dumps(self.note(key) | changes) + "\n").encode())
        sweep(folder, f"{key}.json")

    def write_request(self, text: str) -> None:
        """Keep the request of a command in suite.yaml."""
        with self.locked():
            write_atomic(self.path / "suite.yaml", text.encode())
            sweep(self.path, "suite.yaml")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder's lists to oneself."""
        (self.path / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / "locks" / "suite.lock"):
            yield

    @contextmanager
    def holding(self, key: str, wait: float = 0.5) -> Iterator[bool]:
        """A member to oneself; False where another process has it. Released when a process ends, however it does."""
        (self.path / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=wait, poll_interval=0.05)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_held(self, key: str) -> bool:
        """Whether a process runs this member now."""
        if not (self.path / "locks" / f"{key}.lock").exists():
            return False
        with self.holding(key, wait=0) as mine:
            return not mine

    def write_choice(self, method: str, task: str, choice: Mapping[str, Any]) -> None:
        """Enter a choice into choices.json."""
        file = self.path / "choices.json"
        with self.locked():
            known = json.loads(file.read_text()) if file.exists() else {}
            known.setdefault(method, {})[task] = choice
            write_atomic(file, (json.dumps(known, indent=2) + "\n").encode())
            sweep(self.path, file.name)
