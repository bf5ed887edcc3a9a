"""LoRA and DoRA in Hugging Face peft's format: of every changed map A [r in], B [out r], and the rows' magnitudes.

    ours    W x + s B A x               s = alpha / rank, the same everywhere; some rows of a fused qkv, each with its A
    peft's  W x + (alpha / r) B A x     all rows of a module; r and alpha may differ from module to module

Out: the A of q and v in a fused qkv stand above each other and B has a block for each of them, which is the same map at
twice the rank. In: a module of lower rank gets rows and columns of zeros, one that is not there is zero whole, and
another alpha / r goes into B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vpeft.backbones import Backbone
from vpeft.interop.peft_names import Module, pattern
from vpeft.methods.dora import DoRA, Magnitude
from vpeft.methods.lora import LoRA
from vpeft.methods.low_rank import LowRank, maps
from vpeft.seams import Affine

Tensors = dict[str, Tensor]


def write(method: LoRA | DoRA, backbone: Backbone, names: Mapping[int, str]) -> tuple[dict[str, Any], Tensors]:
    """Entries of adapter_config.json, and the tensors by module and part.

    Args:
        method: Attached or not.
        backbone: It was built for.
        names: Of modules, by their id.
    """
    changed = [affine for block in backbone.blocks for affine, _ in maps("lora", block, method.targets)]
    tensors: Tensors = {}
    sizes: dict[str, tuple[int, float]] = {}
    for affine, update in zip(changed, method.updates, strict=True):
        name = names[id(affine.owner)]
        low: Any = update.low if isinstance(update, Magnitude) else update
        a, b = low.a(), low.b()
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        sizes[name] = len(a), _number(low.scale * len(a))
        if isinstance(update, Magnitude):
            tensors[f"{name}.lora_magnitude_vector"] = _magnitudes(affine, low, update)
    ((rank, alpha), _), *_ = Counter(sizes.values()).most_common()
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout.p,
        "rank_pattern": {name: r for name, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {name: alone for name, (_, alone) in sizes.items() if alone != alpha},
        "target_modules": list(sizes),
        "use_dora": isinstance(method, DoRA),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return config, tensors


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _magnitudes(affine: Affine, low: LowRank, update: Magnitude) -> Tensor:  # out
    """Of rows that are not updated their norm, so that nothing scales them."""
    whole = torch.linalg.vector_norm(affine.tensors()["weight"], dim=1)
    for part, magnitude in zip(low.rows, update.magnitude, strict=True):
        whole[part] = magnitude.detach()
    return whole


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensors], modules: Sequence[Mapping[str, Module]]
) -> tuple[dict[str, Any], Tensors]:
    """Entry of the method, and its state.

    Args:
        config: adapter_config.json.
        tensors: By the name of the module and the part.
        modules: Of every block the modules by role.

    Raises:
        ValueError: A module lacks A or B, or they do not fit it.
    """
    dora = bool(config.get("use_dora"))
    scales = {name: _scale(config, name, _checked(name, parts, dora)) for name, parts in tensors.items()}
    (scale, _), *_ = Counter(scales.values()).most_common()
    rank = max(len(parts["lora_A"]) for parts in tensors.values())
    targets = [role for role in modules[0] if any(block[role].name in tensors for block in modules)]
    state: Tensors = {}
    for index, module in enumerate(block[role] for block in modules for role in targets):
        out, into = module.shape
        parts = tensors.get(module.name, {"lora_A": torch.zeros(0, into), "lora_B": torch.zeros(out, 0)})
        a, b = parts["lora_A"].float(), parts["lora_B"].float()
        if (a.shape[1], b.shape[0]) != (into, out):
            raise ValueError(
                f"{module.name} has A {list(a.shape)} and B {list(b.shape)}, and this backbone's map is {out} x {into}"
            )
        b = b * (scales.get(module.name, scale) / scale)
        state[f"down.{index}.weight"] = F.pad(a, (0, 0, 0, rank - len(a)))
        state[f"updates.{index}.{'low.' if dora else ''}up.0"] = F.pad(b, (0, rank - b.shape[1]))
        if dora:
            own = torch.linalg.vector_norm(module.affine.tensors()["weight"].detach(), dim=1)
            magnitude = {"lora_magnitude_vector": own, **parts}["lora_magnitude_vector"].float()
            if magnitude.shape != (out,):
                raise ValueError(f"{module.name} has magnitudes {list(magnitude.shape)}, and {out} are needed")
            state[f"updates.{index}.magnitude.0"] = magnitude
    options: dict[str, Any] = {"rank": rank, "alpha": float(scale * rank), "targets": targets}
    return {
        "name": "dora" if dora else "lora",
        **options,
        "dropout": _written("lora_dropout", config.get("lora_dropout", 0.0)),
    }, state


def _checked(name: str, parts: Tensors, dora: bool) -> int:
    """The rank."""
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    if odd := sorted(wanted ^ set(parts)):
        raise ValueError(
            f"{name} has {', '.join(sorted(parts))}; {odd[0]} is {'lacking' if odd[0] in wanted else 'not read'}"
        )
    if len(parts["lora_A"]) != parts["lora_B"].shape[1]:
        raise ValueError(f"{name} has A of rank {len(parts['lora_A'])} and B of rank {parts['lora_B'].shape[1]}")
    return len(parts["lora_A"])


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = _written("lora_alpha", pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha")))
    if not alpha or not rank:
        raise ValueError(f"{name} has lora_alpha {alpha:g} and rank {rank}, so that it changes nothing")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _written(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
        raise ValueError(f"adapter_config.json has {key} {str(value)[:80]}, which is no number that peft writes")
    return value
