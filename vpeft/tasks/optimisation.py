"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vpeft.config import OptimConfig


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Fraction of the peak learning rate in optimiser step `step` of `steps`, counted from 0.

    A linear rise over `warmup` steps that reaches 1 in the last of them, then half a cosine down to
    `floor`. With 100 epochs, 10 of warm-up and floor 0 the value at the start of an epoch is the one
    that VPT uses throughout that epoch; NOAH's recipe ends at floor 0.01.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(groups: dict[str, list[tuple[str, nn.Parameter]]], optim: OptimConfig) -> list[dict[str, Any]]:
    """Optimiser groups of the method and of the head, each split into decayed and undecayed parameters.

    Args:
        groups: `Tuned.parameter_groups()`: named trainable parameters under `method`, `backbone` (what
            the method adopts: it learns as the method does) and `head`.
        optim: Learning rates and decays.

    Returns:
        Groups named `method`, `method_undecayed`, `head`, `head_undecayed`; empty ones are left out.

    Raises:
        ValueError: Nothing is trainable.
    """
    head_lr = optim.lr if optim.head_lr is None else optim.head_lr
    head_decay = optim.weight_decay if optim.head_weight_decay is None else optim.head_weight_decay
    parts = {
        "method": (groups["method"] + groups["backbone"], optim.lr, optim.weight_decay),
        "head": (groups["head"], head_lr, head_decay),
    }
    result: list[dict[str, Any]] = []
    for name, (parameters, lr, decay) in parts.items():
        decayed, undecayed = [], []
        for _, parameter in parameters:
            (decayed if optim.decay_vectors or parameter.ndim > 1 else undecayed).append(parameter)
        result.append({"name": name, "params": decayed, "lr": lr, "weight_decay": decay})
        result.append({"name": f"{name}_undecayed", "params": undecayed, "lr": lr, "weight_decay": 0.0})
    result = [group for group in result if group["params"]]
    if not result:
        raise ValueError("No parameter is trainable: neither a method nor the head owns one that requires a gradient.")
    return result


def optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (torch's betas 0.9 and 0.999) or SGD with momentum."""
    if optim.name == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def learning_rates(built: torch.optim.Optimizer) -> dict[str, float]:
    """Present learning rate of `method` and `head`, where they have parameters."""
    return {group["name"].removesuffix("_undecayed"): group["lr"] for group in built.param_groups}
