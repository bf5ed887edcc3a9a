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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from vpeft.config import ConfigError
from vpeft.fetch import sweep, write_atomic
from vpeft.json_file import NUMBER, fits, read_json
from vpeft.results.file import append_row, numbered_rows, read_rows
from vpeft.suite.members import Item, Member, Phase, item_of, member_of

Kind = TypeVar("Kind")
# What is read of a row; one of a tuning member has val too, one of a final member test or val.
_ROW = {"suite": {"member": str, "code": str}, "tuning": dict | None, "versions": {str: str}}
_ROW |= {"time": {"wall_seconds": NUMBER}, "test": dict | None, "val": dict | None}


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
        """All rows of a phase, stale ones too; a line of another form is left out with a warning that names it."""
        file, rows = self.output(phase) / "results.jsonl", []
        for number, row in numbered_rows(file):
            if row is None or ("suite" in row and not _is_row(row, phase)):
                warnings.warn(f"{file}, line {number}: not a whole row of a suite; it is left out.", stacklevel=2)
            elif "suite" in row:
                rows.append(row)
        return rows

    def log(self, member: Member) -> Path:
        return self.path / "logs" / f"{member.name}.log"

    def members(self) -> dict[str, Member]:
        """Every member there was, by id.

        Raises:
            ValueError: A line is no member.
        """
        return {one.id: one for one in self._listed()}

    def current(self) -> list[Member]:
        """The members that hold: the last of every place of the grid, and the tuning members that those need.

        Raises:
            ValueError: A line is no member, or one that is needed is missing.
        """
        lines = self._listed()
        every = {one.id: one for one in lines}
        finals = {one.cell: one for one in lines if one.phase == "final"}
        needed = dict.fromkeys(key for final in finals.values() for key in final.needs)
        self.check(needed, every)
        return [*(every[key] for key in needed), *finals.values()]

    def check(self, keys: Iterable[str], known: Mapping[str, Member]) -> None:
        """Refuse a folder that lacks a member which others name.

        Raises:
            ValueError: It does.
        """
        if lacking := next((key for key in keys if key not in known), None):
            raise ValueError(
                f"{self.path / 'members.jsonl'} has no member {lacking}, which others name; give the command of the "
                "suite again, which enters what is missing."
            )

    def _listed(self) -> list[Member]:
        return self._lines("members.jsonl", member_of)

    def _lines(self, name: str, read: Callable[[Mapping[str, Any]], Kind | None]) -> list[Kind]:
        found = []
        for row in read_rows(self.path / name):
            if (one := read(row)) is None:
                raise ValueError(
                    f"{self.path / name} has a line that is damaged ({json.dumps(row):.80}): put back a copy of the "
                    "file, or remove the line and give the command of the suite again."
                )
            found.append(one)
        return found

    def items(self) -> list[Item]:
        """All items.

        Raises:
            ValueError: A line is no item.
        """
        return self._lines("items.jsonl", item_of)

    def item(self, index: int) -> Item:
        """A line of items.jsonl.

        Raises:
            ConfigError: There is no such line.
            ValueError: A line is no item.
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
            holding = {one.cell: one.id for one in self._listed()}
            for member in members:
                if holding.get(member.cell) != member.id:
                    append_row(self.path / "members.jsonl", asdict(member))
            known = self.items()
            by_members = {tuple(item.members): item for item in known}
            free = 1 + max((item.index for item in known), default=-1)  # a line may have been lost
            chosen = []
            for group in groups:
                key = tuple(member.id for member in group)
                if key not in by_members:
                    by_members[key] = Item(free, group[0].phase, list(key))
                    free += 1
                    append_row(self.path / "items.jsonl", asdict(by_members[key]))
                chosen.append(by_members[key])
        return chosen

    def note(self, key: str) -> dict[str, Any]:
        """How a member stood when it was last heard of; empty of one that never ran.

        Raises:
            ValueError: What is noted is damaged.
        """
        file = self.path / "notes" / f"{key}.json"
        advice = "delete it, and this run counts as not begun"
        return read_json(file, {"status": str}, advice) if file.exists() else {}

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
            advice = "delete it; it is written anew as settings are chosen"
            known = read_json(file, {str: dict}, advice) if file.exists() else {}
            known.setdefault(method, {})[task] = choice
            write_atomic(file, (json.dumps(known, indent=2) + "\n").encode())
            sweep(self.path, file.name)


def _is_row(row: Mapping[str, Any], phase: Phase) -> bool:
    if not fits(row, _ROW) or not fits(row["tuning"] or {"chosen": {}}, {"chosen": dict}):
        return False
    measured = row["val"] if phase == "tuning" else row["test"] or row["val"]
    return fits(measured, {"accuracy": NUMBER})
