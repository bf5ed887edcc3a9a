"""The vision tower of a multimodal model: the tokens of a backbone after one of its blocks.

Shapes: I images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm.shapes import VisionShape
from vpeft import methods
from vpeft.backbones import Backbone
from vpeft.tuned import Tuned


class Tokens(nn.Module):
    """A neck: normalised images [I 3 H W] -> the tokens [I N D] that leave one block; without parameters.

    The defaults are LLaVA's (Liu et al., CVPR 2024, arXiv:2310.03744): the last block but one, patches only, no norm.
    BLIP-2 (Li et al., ICML 2023, arXiv:2301.12597) reads class token and patches before its last block, without a
    norm of the tower: layer -2 and `prefix`.

    The backbone ends at that block: blocks behind it do not run, and methods that are built afterwards leave them
    alone. Prompts that a method puts between class token and patches are not handed on.

    Args:
        backbone: Any; of a Swin, the tokens are the map of the block's stage, row by row.
        layer: The block: from 0, or from the end, -1 being the last.
        prefix: Hand on class token and registers, before the patches.
        norm: The tokens pass the backbone's last norm.

    Raises:
        ValueError: there is no such block, or no prefix to hand on.
    """

    def __init__(self, backbone: Backbone, layer: int = -2, prefix: bool = False, norm: bool = False) -> None:
        super().__init__()
        depth = len(backbone.blocks)
        if not -depth <= layer < depth:
            raise ValueError(
                f"layer is {layer}, and {backbone.name} has {depth} blocks: from 0 to {depth - 1}, or -{depth} to -1 "
                "from the end."
            )
        self.layer, self.depth = layer % depth, depth
        last = backbone.blocks[layer]
        if prefix and not last.prefix:
            raise ValueError(
                f"prefix is true, and {backbone.name} has neither class token nor registers. Leave prefix out."
            )
        self.dim, self.grid, self.norm = last.dim, last.grid, norm
        self.prefix, self._first = (last.prefix if prefix else 0), last.prefix
        backbone.end_after(layer % depth)
        if not norm:
            backbone.skip_norm()
        self._leave_out_unread(backbone)

    def forward(self, backbone: Backbone, images: Tensor) -> Tensor:
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
        if self.norm:
            x = backbone.family.norm(x)
        x = x.flatten(1, -2)  # I N D; a Swin's tokens come as I H W D
        patches = x[:, -self.grid[0] * self.grid[1] :]
        return torch.cat([x[:, : self.prefix], patches], dim=1) if self.prefix else patches

    def _leave_out_unread(self, backbone: Backbone) -> None:
        """Keep what the tokens do not depend on, an attention pooling say, from methods that train parameters."""
        wanted = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
        backbone.requires_grad_(True)
        seen = _read_by(self(backbone, _blank(backbone)))
        for parameter, learns in wanted.items():
            parameter.requires_grad_(learns)
        unread = (name for name, p in backbone.model.named_parameters() if id(p) not in seen)
        backbone.family.unused += tuple(name for name in unread if name not in backbone.family.unused)


def tower(
    backbone: Backbone,
    method: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    layer: int = -2,
    prefix: bool = False,
    norm: bool = False,
) -> Tuned:
    """A backbone with methods of vpeft in it, that maps normalised images [I 3 H W] to tokens [I N D].

    Args:
        backbone: Is changed, as by `Tuned` and `Tokens`.
        method: `{name: lora, rank: 8}`, or a list of such; None trains nothing.
        layer: Of `Tokens`.
        prefix: Of `Tokens`.
        norm: Of `Tokens`.

    Raises:
        ValueError: what `Tokens` or a method refuses, or a method of which something would never learn.
    """
    neck = Tokens(backbone, layer, prefix, norm)
    attached = methods.build(method, backbone) if method else []
    tuned = Tuned(backbone, attached, nn.Identity(), neck=neck)
    _check_reached(tuned, layer)
    return tuned


def vision_shape(tuned: Tuned) -> VisionShape:
    """What a connector reads of a tower.

    Raises:
        TypeError: it has another neck than `Tokens`.
    """
    neck = tuned.neck
    if not isinstance(neck, Tokens):
        raise TypeError(f"A vision tower ends in the neck Tokens, and this one in {type(neck).__name__}; use tower().")
    return VisionShape(neck.dim, neck.grid, neck.prefix)


def _check_reached(tuned: Tuned, layer: int) -> None:
    """Refuse methods that hold something the tokens do not depend on."""
    if not any(True for _ in tuned.trainable()):
        return
    with torch.enable_grad():
        seen = _read_by(tuned(_blank(tuned.backbone)))
    for name, parameter in tuned.trainable():
        if id(parameter) in seen:
            continue
        part, index, *_ = name.split(".")
        owner = methods.name_of(tuned.methods[int(index)]) if part == "methods" else "the method"
        raise ValueError(
            f"{owner} acts behind block {layer} of {tuned.backbone.name}, whose tokens are read, so {name} would never "
            "learn. Read a later layer, or use a method that acts on the blocks."
        )


def _blank(backbone: Backbone) -> Tensor:
    like = next(backbone.parameters())
    return torch.zeros(1, 3, *backbone.image_size, dtype=like.dtype, device=like.device)


def _read_by(output: Tensor) -> set[int]:
    """Ids of the tensors that the graph behind an output begins with."""
    seen, found, left = set(), set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        left += [before for before, _ in node.next_functions]
    return found
