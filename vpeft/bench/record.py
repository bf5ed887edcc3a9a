"""The file of a benchmark: JSON that is written anew, whole, whenever something has been measured."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vpeft.fetch import write_atomic
from vpeft.json_file import parsed
from vpeft.results.row import git_commit, now, versions

_CPUINFO = Path("/proc/cpuinfo")


def described(setting: Any) -> dict[str, Any]:
    """What stands at the head of every file: the setting, versions, the machine, the commit and the date."""
    known = versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        known["peft"] = importlib.metadata.version("peft")
    return {
        "setting": asdict(setting),
        "versions": known,
        "machine": machine(),
        "git": git_commit(),
        "date": now(),
    }


def machine() -> dict[str, Any]:
    """The processor, how many cores this process may use, the GPU, and how many processes were waiting for a core."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = named.get("flags", "").split()
    return {
        "processor": named.get("model name", "unknown"),
        "family": " ".join(named.get(key, "") for key in ("cpu family", "model")).strip(),
        "bf16": sorted({"avx512_bf16", "amx_bf16"} & set(flags)),
        "cores": cores,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
    }


def dumped(found: Any) -> str:
    """JSON as all files have it."""
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


class Record:
    """What a file holds of one setting; measures are added to it one by one, and a case measured again is replaced.

    Args:
        path: The file; a new one is begun where there is none.
        kind: methods, curves or epochs.
        setting: On what is measured.

    Raises:
        ValueError: The file is none of these, or was measured on something else.
    """

    def __init__(self, path: Path, kind: str, setting: Any) -> None:
        self.path, self.head = Path(path), described(setting)
        self.data: dict[str, Any] = {"kind": kind, "setting": self.head["setting"], "runs": []}
        if self.path.exists():
            self.data = read(self.path)
            if self.data["kind"] != kind:
                raise ValueError(f"{path} holds {self.data['kind']}, not {kind}; give another file.")
            was, asked = self.data["setting"], json.loads(json.dumps(self.head["setting"]))
            if changed := [key for key in asked if was.get(key) != asked[key]]:
                there, here = (", ".join(f"{key} {one.get(key)}" for key in changed) for one in (was, asked))
                raise ValueError(
                    f"{path} was measured with {there}, and here it is {here}. Give another file, or the same settings."
                )

    def put(self, measure: str, case: str, found: dict[str, Any]) -> None:
        """Write down one measure of one case, with when and where."""
        self._forget(measure, case)
        self.data.setdefault(measure, {})[case] = {**found, "run": self.run()}
        self.save()

    def fail(self, measure: str, case: str, reason: str) -> None:
        """Write down that a case could not be measured; what it measured before is of another state, and goes."""
        if isinstance(known := self.data.get(measure), dict):
            known.pop(case, None)
        self.data.setdefault("failed", {}).setdefault(measure, {})[case] = reason
        self.save()

    def session(self, measure: str, seconds: dict[str, Any]) -> Callable[[], None]:
        """Begin measurements whose cases take turns, which are compared among themselves only.

        Returns:
            What writes down `seconds` as they are then.
        """
        found = {"run": self.run(), "seconds": seconds}
        for case in seconds:
            self._forget(measure, case)

        def save() -> None:
            sessions = self.data.setdefault(measure, [])
            if found not in sessions:
                sessions.append(found)
            self.save()

        return save

    def save(self) -> None:
        write_atomic(self.path, dumped(self.data).encode())

    def _forget(self, measure: str, case: str) -> None:
        self.data.get("failed", {}).get(measure, {}).pop(case, None)

    def run(self) -> int:
        """Number of the description of what measures now, in `runs`."""
        runs, own = self.data["runs"], {key: value for key, value in self.head.items() if key != "setting"}
        if own not in runs:
            runs.append(own)
        return runs.index(own)


def read(path: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        ValueError: It is not one of a benchmark.
    """
    data = parsed(Path(path).read_bytes(), {"kind": str, "setting": dict, "runs": list})
    if data is None:
        raise ValueError(f"{path} is not a file of tools/bench.py; give one that it wrote, or a new name.")
    return data
