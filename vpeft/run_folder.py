"""One folder a run: never overwritten, found again when the run is resumed.

config.yaml  run.json  last.ckpt  tensorboard/        while it goes
adapter.safetensors  result.json                      when it is finished
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.config import Config
from vpeft.fetch import write_atomic
from vpeft.results import append_row, read_rows
from vpeft.schema import ConfigError, values

# May differ between the parts of one run: the numbers do not depend on them.
FREE_ON_RESUME = ("train.resume", "data.workers", "output")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    Args:
        path: The folder.
        id: Of the run, for its one result row.
    """

    path: Path
    id: str

    @property
    def checkpoint(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter.safetensors"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def result(self) -> dict[str, Any] | None:
        """The row of a finished run."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, row: Mapping[str, Any], results: Path) -> None:
        """Append the row to `results` once, however often a killed run is finished; then mark the folder."""
        if all(known.get("id") != self.id for known in read_rows(results)):
            append_row(results, row)
        write_atomic(self.path / "result.json", (json.dumps(row, indent=2) + "\n").encode())


def default_name(config: Config) -> str:
    """`<task>-<methods>-<backbone>-seed<seed>`, with nothing that a file system might refuse."""
    specs = config.method if isinstance(config.method, list) else [config.method]
    methods = "+".join(str(spec["name"]) for spec in specs)
    name = f"{config.data.task}-{methods}-{config.backbone}-seed{config.seed}"
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in name)


def newest(config: Config) -> RunFolder | None:
    """The run of this name with the highest number, finished or not."""
    found = None
    for path in _numbered(config):
        if not path.exists():
            return found
        if (path / "run.json").exists():
            found = RunFolder(path, json.loads((path / "run.json").read_text())["id"])
    return found


def create(config: Config) -> RunFolder:
    """Make the first free folder among <name>, <name>-2, <name>-3, ..."""
    for path in _numbered(config):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        run = RunFolder(path, secrets.token_hex(8))
        record = {"id": run.id, "settings": _settings(config)}
        write_atomic(path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        return run
    raise AssertionError("there is always another number")


def check_same(config: Config, run: RunFolder) -> None:
    """Refuse to resume a run under other settings.

    Raises:
        ConfigError: A setting differs; the message names up to three.
    """
    before, now = json.loads((run.path / "run.json").read_text())["settings"], _settings(config)
    changed = [key for key in now if key not in FREE_ON_RESUME and before.get(key) != now[key]]
    if changed:
        told = ", ".join(f"{key} was {before.get(key)} and is {now[key]}" for key in changed[:3])
        raise ConfigError(
            f"{run.path} cannot be resumed under other settings: {told}. Give it the settings in {run.config}, or "
            "start a new run without train.resume."
        )


def _numbered(config: Config) -> Any:
    name, number = config.name or default_name(config), 1
    while True:
        yield config.output / (name if number == 1 else f"{name}-{number}")
        number += 1


def _settings(config: Config) -> dict[str, Any]:
    """By dotted key, as they come back from JSON."""
    return json.loads(json.dumps(values(config), default=str))
