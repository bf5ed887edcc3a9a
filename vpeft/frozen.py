"""Frozen weights in bfloat16: what autocast casts at every step, cast once.

Autocast casts what enters a linear map, a convolution or an attention to bfloat16, the frozen weights at every step
anew, and keeps these copies until the backward pass. Stored in bfloat16 they are the same numbers to the bit, without
the casts and with two bytes a weight instead of six.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from vpeft.affine import Affine
from vpeft.methods import name_of

if TYPE_CHECKING:
    from vpeft.tuned import Tuned

# What these do with their own tensors, autocast does in bfloat16. A class that computes with its weight in another way
# first, as a standardised convolution does, has a forward of its own.
_CAST = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def to_bf16(tuned: Tuned) -> int:
    """Store in bfloat16 what autocast would cast of a model's frozen weights anyway.

    These are weights and biases of the backbone's linear maps and convolutions. They stay as they are where they are
    trained; where a method reads them itself (DoRA's norms, updates in weight form, fishmask's entries); and in
    `nn.MultiheadAttention`, which torch computes without autocast when it evaluates on a CPU. So do norms, scales,
    tokens and position embeddings. Under `torch.autocast` in bfloat16 outputs and gradients are the same bits as
    before; without it the model no longer runs.

    Args:
        tuned: The model, before `torch.compile`; is changed, and can no longer be merged.

    Returns:
        How many numbers are stored in bfloat16.
    """
    stored = list(_cast_anyway(tuned))
    for parameter in stored:
        parameter.data = parameter.data.bfloat16()
    return count(tuned)


def store(tuned: Tuned, frozen: Literal["fp32", "bf16"]) -> None:
    """Store frozen weights as `train.frozen` says.

    Raises:
        ValueError: there are none that could be stored in bf16.
    """
    if frozen == "bf16" and not to_bf16(tuned):
        names = " and ".join(name_of(method) for method in tuned.methods)
        raise ValueError(
            f"train.frozen bf16 finds nothing to store: {names} trains or reads every weight of {tuned.backbone.name} "
            "that bf16-mixed casts. Leave train.frozen out."
        )


def count(tuned: Tuned) -> int:
    """How many numbers of the backbone are stored in bfloat16."""
    return sum(p.numel() for p in tuned.backbone.parameters() if p.dtype == torch.bfloat16)


def _cast_anyway(tuned: Tuned) -> Iterator[nn.Parameter]:
    read = {id(tensor) for affine in _affines(tuned) if affine.read for tensor in affine.tensors().values()}
    attention = (m for m in tuned.backbone.model.modules() if isinstance(m, nn.MultiheadAttention))
    read |= {id(parameter) for module in attention for parameter in module.parameters()}
    for module in tuned.backbone.model.modules():
        if type(module).forward in _CAST and not parametrize.is_parametrized(module):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.dtype == torch.float32 and id(parameter) not in read:
                    yield parameter


def _affines(tuned: Tuned) -> Iterator[Affine]:
    yield from tuned.backbone.family.affines.values()
    for block in tuned.backbone.blocks:
        yield from block.affines.values()
