"""The measures of a case: memory and counts, time of a step, inference, compilation, where the time goes.

Each stands alone and writes what it has found at once, so that one can wait for a quiet machine and an interrupted one
keeps what it has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vpeft.backbones import Backbone
from vpeft.bench.cases import resolved, stored
from vpeft.bench.inference import inference
from vpeft.bench.process import fresh, held, reason, wait
from vpeft.bench.profile import profile
from vpeft.bench.record import Record
from vpeft.bench.setting import Setting
from vpeft.bench.step import Seconds, Step, body_of
from vpeft.bench.turns import turns
from vpeft.scaling.work import Recorder
from vpeft.tuned import Tuned

Say = Callable[[str], None]


def memory(setting: Setting, cases: Sequence[str], rounds: int, record: Record, say: Say) -> None:
    """Counts of every case and, of as many fresh processes as rounds, the peak memory: it is not the same each time."""

    def run(case: str) -> dict[str, Any]:
        first, *others = (fresh(_footprint, setting, case, number == 0) for number in range(rounds))
        peaks = [one["memory"] for one in (first, *others)]
        return {**first, "memory": statistics.median(peaks), "peaks": peaks}

    for case in cases:
        found = _attempt(record, "memory", case, say, lambda case=case: run(case))
        if found:
            say(f"{case}: {found['memory'] / 2**20:,.0f} MiB, {sum(found['operations']) / 1e9:,.0f} GFLOP a step")


def step_time(setting: Setting, cases: Sequence[str], rounds: int, record: Record, say: Say) -> None:
    """Seconds of the parts of a step, all cases in turns; `full` is always among them."""
    torch.set_num_threads(setting.threads)
    body, steps = body_of(setting), {}
    for case in ("full", *(case for case in cases if case != "full")):
        try:
            spec, own = resolved(case, setting)
            steps[case] = Step(own, spec, body)
            steps[case].warm()
        except Exception as error:
            record.fail("time", case, reason(error))
            say(f"{case}: {reason(error)}")
            steps.pop(case, None)
    seconds: dict[str, dict[str, list[float]]] = {case: {part: [] for part in Seconds._fields} for case in steps}
    session = record.session("time", seconds)
    for turn, found in enumerate(turns(steps, rounds), start=1):
        for case, parts in found.items():
            for part, value in parts._asdict().items():
                seconds[case][part].append(value)
        session()
        say(f"round {turn} of {rounds}: {sum(sum(parts) for parts in found.values()):.0f} s")


def inference_time(setting: Setting, cases: Sequence[str], rounds: int, record: Record, say: Say) -> None:
    """Of every case with its adapter and merged, each beside the plain backbone."""
    torch.set_num_threads(setting.threads)
    body = body_of(setting)
    for case in cases:
        spec, own = resolved(case, setting)
        if _attempt(record, "inference", case, say, lambda spec=spec, own=own: inference(own, spec, body, rounds)):
            say(f"{case}: inference done")


def compilation(setting: Setting, cases: Sequence[str], rounds: int, record: Record, say: Say) -> None:
    """Of every case, in a fresh process: how long compiling takes, and steps with it and without in turns."""
    for case in cases:
        found = _attempt(record, "compile", case, say, lambda case=case: fresh(_compiled, setting, case, rounds))
        if found:
            say(f"{case}: compiled in {found['compiling']:.0f} s")


def profiles(setting: Setting, cases: Sequence[str], rounds: int, record: Record, say: Say) -> None:
    """Of every case, in a fresh process: seconds, FLOPs and bytes of each kind of operation in a step."""
    for case in cases:
        if _attempt(record, "profile", case, say, lambda case=case: fresh(profile, setting, case, rounds)):
            say(f"{case}: profiled")


MEASURES = {
    "memory": memory,
    "time": step_time,
    "inference": inference_time,
    "compile": compilation,
    "profile": profiles,
}
ROUNDS = {"memory": 3, "time": 5, "inference": 5, "compile": 3, "profile": 3}  # by default


def _attempt(record: Record, measure: str, case: str, say: Say, run: Callable[[], dict[str, Any]]) -> Any:
    """What was found, which is written down; None where it failed, and the reason is."""
    try:
        found = run()
    except Exception as error:  # one case that cannot be measured must not stop the others
        record.fail(measure, case, reason(error))
        say(f"{case}: {reason(error)}")
        return None
    record.put(measure, case, found)
    return found


def _footprint(setting: Setting, case: str, tensors: bool) -> dict[str, Any]:
    spec, setting = resolved(case, setting)
    from vpeft.tasks.timing import forget_peak, peak_memory

    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    if "peft" in spec:
        import peft  # noqa: F401  what importing costs is nobody's
    warm = replace(setting, backbone="test_vit", image_size=None, batch=2)
    Step(warm, {"name": "linear"}, body_of(warm)).warm()
    forget_peak()
    before = 0 if device.type == "cuda" else peak_memory(device)
    step = Step(setting, spec, body_of(setting))
    step.warm()  # the optimiser's state is there from the first step on
    forget_peak()  # building makes copies
    counted = counts(step)
    memory = peak_memory(device) - before
    file, head = stored(step.model, spec)
    return {
        "parameters": sum(parameter.numel() for parameter in step.trained),
        "trained_bytes": sum(parameter.numel() * parameter.element_size() for parameter in step.trained),
        "file_bytes": file,
        "head_bytes": head,
        "memory": memory,
        **counted,
        **({"tensors": held(step, device)} if tensors else {}),
    }


def counts(step: Step) -> dict[str, Any]:
    """Run a step: operations and bytes of its three parts, and how much of the backbone needs a gradient."""
    seen: list[bool] = []
    ours = isinstance(step.model, Tuned)
    if ours:
        for block in step.body.blocks:
            block.after(_Reached(seen))
    with Recorder() as forward:
        loss = step.forward()
    with Recorder() as backward:
        loss.backward()
    with Recorder() as update:
        step.update()
    wait(step.device)
    parts = (forward, backward, update)
    return {
        "operations": [sum(one.flops for one in part.found) for part in parts],
        "bytes": [sum(one.bytes for one in part.found) for part in parts],
        # peft's methods act in the first block already, and train no matrix of the backbone.
        "blocks_backward": sum(seen) / len(seen) if ours else 1.0,
        "weights_trained": _weights_trained(step.body) if ours else 0.0,
    }


class _Reached:
    """Notes whether the gradient of what leaves a block is asked for, so that the backward pass goes through it."""

    def __init__(self, seen: list[bool]) -> None:
        self.seen = seen

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.requires_grad)
        return x


def _weights_trained(body: Backbone) -> float:
    """Share of the numbers in the backbone's matrices and convolutions that learn themselves."""
    weights = [p for block in body.blocks for p in block.module.parameters() if p.ndim > 1]
    own = [p for p in weights if p.requires_grad]
    return sum(p.numel() for p in own) / sum(p.numel() for p in weights)


def _compiled(setting: Setting, case: str, rounds: int) -> dict[str, Any]:
    spec, setting = resolved(case, setting)
    torch.set_num_threads(setting.threads)
    body = body_of(setting)
    eager, compiled = Step(setting, spec, body), Step(setting, spec, body)
    compiled.model.compile()
    first = eager.forward().item()
    start = time.perf_counter()
    loss = compiled.forward()
    difference = abs(loss.item() - first)
    loss.backward()
    compiled.update()
    whole = time.perf_counter() - start
    seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
    eager.warm()
    for found in turns({"eager": eager, "compiled": compiled}, rounds):
        for name, parts in found.items():
            seconds[name].append(sum(parts))
    from torch._dynamo.utils import counters

    return {
        "compiling": max(0.0, whole - min(seconds["compiled"])),
        "breaks": sum(counters["graph_break"].values()),
        "loss_differs": difference,
        "seconds": seconds,
    }
