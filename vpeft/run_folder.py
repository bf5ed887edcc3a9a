"""One folder a run: never overwritten, found again when the run is resumed.

config.yaml  run.json  last.ckpt  tensorboard/        while it goes
adapter.safetensors  result.json                      when it is finished
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from vpeft.config import AnyConfig, TunedConfig, to_yaml
from vpeft.fetch import sweep, write_atomic
from vpeft.json_file import read_json
from vpeft.results import append_row, read_rows
from vpeft.schema import ConfigError, values

# May differ between the parts of one run: the numbers do not depend on them.
FREE_ON_RESUME = ("train.resume", "train.frozen", "data.workers", "output")


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
    def record(self) -> dict[str, Any]:
        """What was written when the folder was made: id, name without its number, settings."""
        return _record(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """The row of a finished run."""
        file = self.path / "result.json"
        advice = "put back a copy of it, or delete it, and --train.resume true goes on with this run"
        return read_json(file, dict, advice) if file.exists() else None

    def finish(self, row: Mapping[str, Any], results: Path) -> None:
        """Append the row to `results` once, however often a killed run is finished; then mark the folder with it."""
        known = next((known for known in read_rows(results) if known.get("id") == self.id), None)
        if known is None:
            append_row(results, row)
        row = known or row
        write_atomic(self.path / "result.json", (json.dumps(row, indent=2) + "\n").encode())


def default_name(config: AnyConfig) -> str:
    """`<task>-<methods>-<backbone>-seed<seed>`, with nothing that a file system might refuse."""
    if isinstance(config, TunedConfig):
        specs = config.method if isinstance(config.method, list) else [config.method]
        methods = "+".join(str(spec["name"]) for spec in specs)
        name = f"{config.data.task}-{methods}-{config.backbone}-seed{config.seed}"
    else:
        name = f"{config.label}-seed{config.seed}"
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in name)


def find(config: AnyConfig) -> RunFolder | None:
    """The run that `train.resume` goes on with, or None where this name has no run yet.

    That is the newest unfinished run under the same settings; without one, the newest finished run under them.

    Raises:
        ConfigError: All runs of this name have other settings; the message names up to three.
    """
    if known := same(config):
        run = next((run for run in reversed(known) if run.result is None), known[-1])
        if run.result is None and getattr(rank_zero_only, "rank", 0) == 0:
            _complete(run, config)
        return run
    others = _runs(config)
    if not others:
        return None
    run = next((run for run in reversed(others) if run.result is None), others[-1])
    before, now = run.record["settings"], _settings(config)
    told = ", ".join(f"{key} was {before.get(key)} and is {now[key]}" for key in _changed(config, run)[:3])
    raise ConfigError(
        f"{run.path} cannot be resumed under other settings: {told}. Give it the settings in {run.config}, or "
        "start a new run without train.resume."
    )


def _complete(run: RunFolder, config: AnyConfig) -> None:
    """Write the config.yaml that a kill may have come before."""
    if not run.config.exists():
        write_atomic(run.config, to_yaml(config).encode())


def same(config: AnyConfig) -> list[RunFolder]:
    """The runs of this name under the same settings, oldest first, finished or not."""
    return [run for run in _runs(config) if not _changed(config, run)]


def create(config: AnyConfig) -> RunFolder:
    """Make <name>, or <name>-2, <name>-3, ...: a folder numbered above all there are, so that the highest is newest.

    A highest one in which a process was killed before it could say what it is for is taken over.

    Raises:
        ConfigError: A path in the settings is no UTF-8 text.
        OSError: The folder could not be made; nothing is left of it.
    """
    name, there, settings = config.name or default_name(config), _numbered(config), _settings(config)
    try:
        json.dumps(settings, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # TensorBoard would meet it when all is trained
        near = error.object[max(0, error.start - 40) : error.start + 10]
        raise ConfigError(f"A setting is no UTF-8 text (at {near!a}); rename the file or folder.") from error
    number = max(there, default=1)
    while True:
        path = config.output / (name if number == 1 else f"{name}-{number}")
        run = RunFolder(path, secrets.token_hex(8))
        record = {"id": run.id, "name": name, "settings": settings}
        if _is_free(path) and _claim(path, (json.dumps(record, indent=2) + "\n").encode()):
            try:
                write_atomic(run.config, to_yaml(config).encode())
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise
            return run
        number += 1  # there is such a folder, or another process was faster


def _is_free(path: Path) -> bool:
    """Make a folder, or find one that holds nothing; False where it holds something."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not path.parent.is_dir():  # the output itself, as a link that leads nowhere
            raise
        return path.is_dir() and all(_CLAIM.fullmatch(entry.name) for entry in path.iterdir())
    return True


# What file systems say that know no links; there, two processes must not begin in the same instant.
_LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_CLAIM = re.compile(r"\.run\.json\.[0-9a-f]{8}\.tmp")


def _claim(path: Path, record: bytes) -> bool:
    """Write run.json whole, where no other process has; of several that try, one does."""
    claim, target = path / f".run.json.{secrets.token_hex(4)}.tmp", path / "run.json"
    own = None
    try:
        with claim.open("xb") as file:
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
            own = os.fstat(file.fileno())
        os.link(claim, target)  # unlike a rename it fails where there is one
    except FileExistsError:  # NFS says so too where its answer to a link that it made was lost
        return own is not None and os.path.samestat(own, target.stat())
    except FileNotFoundError:  # the faster process has swept the folder
        return False
    except OSError as error:
        if error.errno not in _LINKLESS:
            claim.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process is at it
                path.rmdir()
            raise OSError(
                f"{target} could not be written: {error.strerror}. Free some space or choose another output."
            ) from error
        if target.exists():
            return False
        os.replace(claim, target)
    finally:
        claim.unlink(missing_ok=True)
    sweep(path, "run.json")
    return True


def _runs(config: AnyConfig) -> list[RunFolder]:
    """Every run of this name, oldest first; numbers may be missing between them."""
    name, found = config.name or default_name(config), []
    for _, path in sorted(_numbered(config).items()):
        if (path / "run.json").exists():
            record = _record(path)
            if record.get("name", name) == name:  # <name>-2 can also be a run's own name
                found.append(RunFolder(path, record["id"]))
    return found


def _record(path: Path) -> dict[str, Any]:
    advice = "put back a copy of it, or move this run's folder away"
    return read_json(path / "run.json", {"id": str, "settings": dict}, advice)


def _numbered(config: AnyConfig) -> dict[int, Path]:
    """What is called <name> (1) or <name>-<number>, by number."""
    form = re.compile(re.escape(config.name or default_name(config)) + r"(?:-([1-9]\d*))?")
    entries = config.output.iterdir() if config.output.is_dir() else ()
    found = ((form.fullmatch(path.name), path) for path in entries)
    return {int(match[1] or 1): path for match, path in found if match and match[1] != "1"}


def _changed(config: AnyConfig, run: RunFolder) -> list[str]:
    """Dotted keys of the settings that keep a run from being resumed under this configuration."""
    before, now = run.record["settings"], _settings(config)
    return [key for key in now if key not in FREE_ON_RESUME and before.get(key) != now[key]]


def _settings(config: AnyConfig) -> dict[str, Any]:
    """By dotted key, as they come back from JSON."""
    return json.loads(json.dumps(values(config), default=str))
