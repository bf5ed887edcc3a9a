"""(IA)^3 in Hugging Face peft's format: of every module one vector, over its outputs, or over what fc2 reads.

peft scales all outputs of a module. In a fused qkv those of q are ones here, and have to be ones in a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpeft.backbones import Backbone
from vpeft.interop.peft_names import Module
from vpeft.methods.ia3 import IA3

Tensors = dict[str, Tensor]


def write(method: IA3, backbone: Backbone, names: Mapping[int, str]) -> tuple[dict[str, Any], Tensors]:
    """Entries of adapter_config.json, and the tensors by module and part."""
    scaled = [affine for block in backbone.blocks for affine, _ in block.group(("k", "v"))]
    outputs = {
        names[id(affine.owner)]: update.all_rows()[:, None] for affine, update in zip(scaled, method.attn, strict=True)
    }
    inputs = {
        names[id(block.affines["fc2"].owner)]: update.scale[None]
        for block, update in zip(backbone.blocks, method.inner, strict=True)
    }
    config = {
        "peft_type": "IA3",
        "target_modules": [*outputs, *inputs],
        "feedforward_modules": list(inputs),
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    return config, {f"{name}.ia3_l": tensor for name, tensor in (outputs | inputs).items()}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensors], modules: Sequence[Mapping[str, Module]]
) -> tuple[dict[str, Any], Tensors]:
    """Entry of the method, and its state.

    Raises:
        ValueError: A module is scaled that ours does not scale, or on its other side.
    """
    left, state, index = dict(tensors), {}, 0
    for number, block in enumerate(modules):
        for role in ("qkv",) if "qkv" in block else ("k", "v"):
            scale = _taken(left, block[role].name, block[role].shape[0], outputs=True)
            if role == "qkv":
                q, *rest = scale.chunk(3)
                if (q != 1).any():
                    raise ValueError(f"{block[role].name} scales queries too, which (IA)^3 of this project does not")
            else:
                rest = [scale]
            state |= {f"attn.{index}.scales.{i}": part.clone() for i, part in enumerate(rest)}
            index += 1
        fc2 = block["fc2"]
        state[f"inner.{number}.scale"] = _taken(left, fc2.name, fc2.shape[1], outputs=False)
    if left:
        raise ValueError(
            f"{next(iter(left))} is scaled, and (IA)^3 of this project scales keys, values and what fc2 reads"
        )
    return {"name": "ia3"}, state


def _taken(left: dict[str, Tensors], name: str, size: int, outputs: bool) -> Tensor:
    """The vector of a module; ones where the folder has none."""
    if name not in left:
        return torch.ones(size)
    parts = left.pop(name)
    if set(parts) != {"ia3_l"} or parts["ia3_l"].shape != ((size, 1) if outputs else (1, size)):
        wanted = f"{size} x 1, over its outputs" if outputs else f"1 x {size}, over what it reads"
        found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise ValueError(f"{name} has {found}; ia3_l {wanted}, is what can be read")
    return parts["ia3_l"].float().flatten()
