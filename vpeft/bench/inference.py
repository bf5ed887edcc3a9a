"""Inference of a case with its adapter and merged into the weights, each beside the plain backbone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones import Backbone
from vpeft.bench.cases import head_of, merged
from vpeft.bench.process import wait
from vpeft.bench.setting import Setting
from vpeft.bench.step import Step
from vpeft.bench.turns import turns
from vpeft.packed.sharing import twin


def inference(setting: Setting, spec: Mapping[str, Any], body: Backbone, rounds: int) -> dict[str, Any]:
    """Seconds of a batch by turns, and how far the outputs of the merged model are from those before.

    Everything that learns is moved away from where it starts, so that merging has something to do.

    Args:
        setting: On what.
        spec: A value of CASES.
        body: The backbone; not changed.
        rounds: Turns of each after one that is not counted.
    """
    plain_step = Step(setting, {"name": "linear"}, body)
    step = Step(setting, spec, body)
    model, plain = step.model.eval(), plain_step.model.eval()
    with torch.no_grad():
        for parameter in step.trained:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    images = torch.randn(setting.inference_batch, 3, *body.image_size, device=step.device)
    models = {"plain": plain, "adapted": model}
    said: dict[str, Any] = {}
    if setting.precision == "bf16-frozen":
        said["not_merged"] = "its frozen weights are stored in bf16"
    else:
        try:
            vendor = merged(model, copy.deepcopy(twin(body).model))
            models["merged"] = nn.Sequential(vendor, head_of(model)).eval()
        except ValueError as error:
            said["not_merged"] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    outputs: dict[str, Tensor] = {}

    def run(name: str) -> Callable[[], float]:
        def timed() -> float:
            start = time.perf_counter()
            with torch.autocast(step.device.type, dtype=torch.bfloat16, enabled=step.bf16):
                outputs[name] = models[name](images)
            wait(step.device)
            return time.perf_counter() - start

        return timed

    with torch.inference_mode():
        for number, found in enumerate(turns({name: run(name) for name in models}, rounds + 1)):
            for name, value in found.items() if number else ():
                seconds[name].append(value)
    if "merged" in outputs:
        adapted = outputs["adapted"].float()
        said["differs"] = ((outputs["merged"].float() - adapted).abs().max() / adapted.abs().max()).item()
    return {"seconds": seconds, **said}
