"""Where the time of a step goes: seconds, FLOPs and bytes of every kind of operation that torch issues."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from vpeft.bench.cases import resolved
from vpeft.bench.process import wait
from vpeft.bench.setting import Setting
from vpeft.bench.step import Step, body_of
from vpeft.scaling.work import Recorder


class Timed(Recorder):
    """Notes operations with a cost, and the seconds of each; on a GPU it waits for every one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.seconds = device, list[float]()
        self._last = 0.0

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        wait(self.device)
        start = time.perf_counter()
        out = func(*args, **kwargs)
        wait(self.device)
        self._last = time.perf_counter() - start
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.found) > len(self.seconds):
            self.seconds.append(self._last)
        return out


def profile(setting: Setting, case: str, rounds: int) -> dict[str, Any]:
    """Of the operations of one step, by name and the longest first: how often, FLOPs, bytes, and seconds by round.

    One whole step is made before the first that counts.
    """
    spec, setting = resolved(case, setting)
    torch.set_num_threads(setting.threads)
    step = Step(setting, spec, body_of(setting))
    step()
    by_name: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        with Timed(step.device) as timed:
            step.forward().backward()
            step.update()
        for one, seconds in zip(timed.found, timed.seconds, strict=True):
            new = {"calls": 0, "operations": 0, "bytes": 0, "seconds": [0.0] * rounds}
            kind = by_name.setdefault(one.name.removeprefix("aten."), new)
            kind["seconds"][number] += seconds
            if number == 0:
                kind["calls"] += 1
                kind["operations"] += one.flops
                kind["bytes"] += one.bytes
    return {"kinds": dict(sorted(by_name.items(), key=lambda kind: -statistics.median(kind[1]["seconds"])))}
