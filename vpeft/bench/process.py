"""Measurements that need a process of their own, and what tensors held at their highest."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def fresh(run: Callable[..., T], *arguments: Any) -> T:
    """What `run` gives in a process that has done nothing else.

    Args:
        run: A function of a module.
        arguments: Of it; they have to be picklable.

    Raises:
        RuntimeError: The process died, out of memory for instance.
        Exception: What `run` raised.
    """
    # Not from a fork server: its children would have one layout of memory, and one peak, however often they are asked.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "The process of this measurement died; its last words stand above. Where it has none, the system "
                "stopped it for its memory: try a smaller batch."
            ) from error


def reason(error: BaseException) -> str:
    """An error in one line, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def held(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that a run, which has run before, holds at its highest beyond what there is before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with (
        _muted(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profile.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])), default=0)


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing on stderr: the profiler announces its start and its end there, once for every measurement."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
