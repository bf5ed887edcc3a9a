"""Runs of two processes, started as a user starts them, and what becomes of them when one is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.runs import SGD, tiny_config, write_images
from vpeft.config import to_yaml

ROOT = Path(__file__).parents[2]
TRAIN = (sys.executable, "tools/train.py")


def write_config(folder: Path, **train: object) -> Path:
    """A long run of two processes."""
    images = write_images(folder / "images" / "colors")
    config = tiny_config(
        images, folder / "out", optim=SGD, **{"epochs": 2000, "strategy": "ddp", "devices": 2, **train}
    )
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file


def start(command: Sequence[object]) -> subprocess.Popen[str]:
    """Start it and wait until it has ended some epochs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    run = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert run.stdout is not None
    while not re.match(r"epoch +\d+/", line := run.stdout.readline()):
        assert line, run.communicate()
    return run


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def of_rank(run: subprocess.Popen[str], rank: int) -> int:
    """Pid of the process of this rank, which its environment says; process 0 of the local launcher is its first."""
    for pid in descendants(run.pid):
        if f"LOCAL_RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    assert rank == 0
    return run.pid


def gone(pids: Sequence[int], seconds: float = 20.0) -> bool:
    """Whether all have ended within this time; one that nobody waits for has ended too."""
    limit = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids):
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
