"""A member of a suite is one run; an item is what one process takes at a time: a member, or several packed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from vpeft.config import Config, classifying, resolve
from vpeft.json_file import NUMBER, fits
from vpeft.yaml_file import plain

Phase = Literal["tuning", "final"]
_MEMBER = {"id": str, "method": str, "task": str, "seed": int, "phase": str, "settings": dict, "point": dict}
_MEMBER |= {"grid": {str: list}, "needs": [str]}
_ITEM = {"index": int, "phase": str, "members": [str]}
# By which the better of two equal points is chosen.
RANKED = ("optim.lr", "optim.weight_decay")
# Where a run lies and how it is loaded: its numbers do not depend on them.
_FREE = {"": ("output", "name"), "data": ("workers",), "train": ("resume",)}


@dataclass(frozen=True)
class Member:
    """One run of a suite.

    Args:
        id: Hash of everything below that decides its numbers.
        method: Name of its config file, without the ending.
        task: Value of data.task.
        seed: Of the run.
        phase: `tuning` trains on train800 and is measured on val200; `final` is tested.
        settings: As a config file states them, all written out; where a final member's settings are swept, those
            values are replaced by the chosen ones.
        point: Of tuning: the swept settings and their values, by dotted key.
        grid: Of a final member: the swept settings and all their values; empty without a sweep.
        needs: Of a final member: ids of the tuning members that decide.
    """

    id: str
    method: str
    task: str
    seed: int
    phase: Phase
    settings: dict[str, Any]
    point: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)

    @property
    def cell(self) -> tuple[str, str, int, str, str]:
        """The place in the grid: of two members there, the later one replaces the other."""
        return self.method, self.task, self.seed, self.phase, json.dumps(self.point, sort_keys=True)

    @property
    def name(self) -> str:
        """Of the run's folder and of the log."""
        words = f"{self.task}-{self.method}-seed{self.seed}-{self.id}"
        return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in words)

    @property
    def title(self) -> str:
        """For a line on the screen."""
        values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.point.items())
        return f"{self.task}  {self.method}  seed {self.seed}" + (f"  ({values})" if values else "")


@dataclass(frozen=True)
class Item:
    """What one process takes at a time.

    Args:
        index: Line of items.jsonl, counted from 0; an item keeps it for ever.
        phase: Of all its members.
        members: Their ids; several are trained together.
    """

    index: int
    phase: Phase
    members: list[str]


def member_of(row: Mapping[str, Any]) -> Member | None:
    """The member that a line of members.jsonl states; None where it states none."""
    if not fits(row, _MEMBER) or row["phase"] not in get_args(Phase):
        return None
    if any(_number(row["point"].get(key, 0.0)) is None for key in RANKED):
        return None
    return Member(**{key: row[key] for key in _MEMBER})


def ranked(point: Mapping[str, Any]) -> tuple[float, ...]:
    """The values of RANKED in a point, 0 where it has none; they may be numbers in quotation marks."""
    return tuple(float(point.get(key, 0.0)) for key in RANKED)


def _number(value: Any) -> float | None:
    try:
        return float(value) if fits(value, NUMBER | str) else None
    except (ValueError, OverflowError):
        return None


def item_of(row: Mapping[str, Any]) -> Item | None:
    """The item that a line of items.jsonl states; None where it states none."""
    whole = fits(row, _ITEM) and row["phase"] in get_args(Phase) and row["index"] >= 0 and row["members"]
    return Item(**{key: row[key] for key in _ITEM}) if whole else None


def member(
    config: Config,
    method: str,
    phase: Phase,
    point: Mapping[str, Any] | None = None,
    grid: Mapping[str, list[Any]] | None = None,
    needs: list[str] | None = None,
) -> Member:
    """The member that runs a configuration."""
    settings = plain(asdict(config))
    for section, names in _FREE.items():
        for name in names:
            (settings[section] if section else settings).pop(name, None)
    # How frozen weights are stored changes no number, so it is the run's to know and not the member's to be.
    train = {key: value for key, value in settings["train"].items() if key != "frozen"}
    decides = [phase, settings | {"train": train}, point or {}, grid or {}, needs or []]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return Member(
        key, method, config.data.task, config.seed, phase, settings, dict(point or {}), dict(grid or {}), needs or []
    )


def with_values(settings: Mapping[str, Any], source: str, values: Mapping[str, Any]) -> Config:
    """The configuration of a member, with further values by dotted key."""
    return classifying(resolve(settings, source, [(key, text(value)) for key, value in values.items()]), source)


def text(value: Any) -> str:
    """A value as the command line would give it."""
    return value if isinstance(value, str) else json.dumps(plain(value))
