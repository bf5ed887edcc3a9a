"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vpeft.config import OptimConfig


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0, power: float | None = None) -> float:
    """Fraction of the peak learning rate in optimiser step `step` of `steps`, counted from 0.

    A linear rise over `warmup` steps that reaches 1 in the last of them, then half a cosine down to `floor`, or with
    `power` that power of what is left. With 100 epochs, 10 of warm-up and floor 0 the value at the start of an epoch is
    the one that VPT uses throughout that epoch; NOAH's recipe ends at floor 0.01.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 0.5 * (1 + math.cos(math.pi * done)) if power is None else (1 - done) ** power
    return floor + (1 - floor) * left


def parameter_groups(
    groups: dict[str, list[tuple[str, nn.Parameter]]], optim: OptimConfig, levels: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """Optimiser groups of the method and of the head, each split into decayed and undecayed parameters.

    Args:
        groups: `Tuned.parameter_groups()`: named trainable parameters under `method`, `neck`, `backbone` (what
            the method adopts) and `head`. All but the head learn as the method does.
        optim: Learning rates and decays.
        levels: `Tuned.levels()`, which `optim.layer_decay` goes by.

    Returns:
        Groups named `method`, `method_undecayed`, `head`, `head_undecayed`, and under `layer_decay` those of each
        level of the backbone, `backbone3`, `backbone3_undecayed`, ...; empty ones are left out.

    Raises:
        ValueError: Nothing is trainable.
    """
    head_lr = optim.lr if optim.head_lr is None else optim.head_lr
    head_decay = optim.weight_decay if optim.head_weight_decay is None else optim.head_weight_decay
    parts = [
        ("method", groups["method"] + groups.get("neck", []), optim.lr, optim.weight_decay),
        ("head", groups["head"], head_lr, head_decay),
    ]
    if optim.layer_decay is None or levels is None:
        parts[0][1].extend(groups["backbone"])
    else:
        top = max(levels.values())
        for level in range(top + 1):
            there = [(name, parameter) for name, parameter in groups["backbone"] if levels[id(parameter)] == level]
            rate = optim.lr * optim.layer_decay ** (top - level)
            parts.append((f"backbone{level}", there, rate, optim.weight_decay))
    result: list[dict[str, Any]] = []
    for name, parameters, lr, decay in parts:
        decayed, undecayed = [], []
        for _, parameter in parameters:
            (decayed if optim.decay_vectors or parameter.ndim > 1 else undecayed).append(parameter)
        result.append({"name": name, "params": decayed, "lr": lr, "weight_decay": decay})
        result.append({"name": f"{name}_undecayed", "params": undecayed, "lr": lr, "weight_decay": 0.0})
    result = [group for group in result if group["params"]]
    if not result:
        raise ValueError("There is nothing to train: no method and no head with parameters is given; give a method.")
    return result


def build_schedule(built: torch.optim.Optimizer, optim: OptimConfig, steps: int, epochs: int) -> Any:
    """The schedule of `optim` over a run of `steps` optimiser steps in `epochs` epochs, for Lightning."""
    warmup = round(steps / epochs * optim.warmup_epochs)
    power = optim.power if optim.schedule == "poly" else None
    factor = torch.optim.lr_scheduler.LambdaLR(built, lambda step: schedule(step, steps, warmup, optim.min_lr, power))
    return {"optimizer": built, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


def optimizer(groups: list[dict[str, Any]], optim: OptimConfig, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW (torch's betas 0.9 and 0.999) or SGD with momentum.

    Args:
        groups: `parameter_groups`.
        optim: Which.
        fused: AdamW as one kernel, which reads and writes each number once; its steps differ by rounding.
    """
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, fused=fused or None)  # None is torch's own choice
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def learning_rates(built: torch.optim.Optimizer) -> dict[str, float]:
    """Present learning rate of every part that has parameters."""
    return {group["name"].removesuffix("_undecayed"): group["lr"] for group in built.param_groups}
