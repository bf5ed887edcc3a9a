"""Parameter groups by component, and the learning-rate schedule of a multimodal run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.schema import OptimConfig
from vpeft.tasks.optimisation import schedule

Named = Sequence[tuple[str, nn.Parameter]]
_RATES = {"connector": "connector_lr", "vision": "vision_lr", "language": "language_lr", "embeddings": "language_lr"}


def parameter_groups(components: Mapping[str, Named], optim: OptimConfig) -> list[dict[str, Any]]:
    """Optimiser groups of every component, each split into decayed matrices and the rest.

    Args:
        components: Named trainable parameters under `connector`, `vision`, `language` and `embeddings`. What is called
            a gate in the connector has a group and a rate of its own.
        optim: Rates and decay.

    Returns:
        Groups named `connector`, `connector_undecayed`, `connector_gates`, ...; empty ones are left out.

    Raises:
        ValueError: Nothing is trainable.
    """
    groups: list[dict[str, Any]] = []
    for component, named in components.items():
        own = getattr(optim, _RATES[component])
        rate = optim.lr if own is None else own
        gates = [p for name, p in named if component == "connector" and "gate" in name.rpartition(".")[2]]
        taken = {id(p) for p in gates}
        rest = [p for _, p in named if id(p) not in taken]
        gate_rate = rate if optim.gate_lr is None else optim.gate_lr
        for suffix, parameters, lr, decay in (
            ("", [p for p in rest if p.ndim > 1], rate, optim.weight_decay),
            ("_undecayed", [p for p in rest if p.ndim <= 1], rate, 0.0),
            ("_gates", gates, gate_rate, 0.0),
        ):
            if parameters:
                groups.append({"name": component + suffix, "params": parameters, "lr": lr, "weight_decay": decay})
    if not groups:
        raise ValueError(
            "Nothing is trained: the connector is frozen, and neither method nor language_method trains anything. "
            "Give language_method {name: lora}, or freeze_connector false."
        )
    return groups


def optimiser(components: Mapping[str, Named], optim: OptimConfig, steps: int) -> dict[str, Any]:
    """AdamW and its schedule over a run of `steps` optimiser steps, for Lightning."""
    built = torch.optim.AdamW(parameter_groups(components, optim), betas=(optim.betas[0], optim.betas[1]))
    warmup = round(steps * optim.warmup if optim.warmup < 1 else optim.warmup)
    # A power of 0 stays where the warm-up ends.
    power = 0.0 if optim.schedule == "constant" else None
    factor = torch.optim.lr_scheduler.LambdaLR(built, lambda step: schedule(step, steps, warmup, optim.min_lr, power))
    return {"optimizer": built, "lr_scheduler": {"scheduler": factor, "interval": "step"}}
