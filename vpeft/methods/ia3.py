"""(IA)^3 (Liu et al., NeurIPS 2022, arXiv:2205.05638).

    softmax(q (l_k * k)^T / sqrt(d)) (l_v * v)        W2 (l_ff * act(W1 x))

Learned scales of keys, values and the inner activation of the MLP. All merge into the maps beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.methods.scaling import scale_shift
from vpeft.modules import Modules
from vpeft.rebuilt import Scale, apply

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class IA3(nn.Module):
    """Three vectors a block, all ones at the start; L (2 d + h) parameters, h the MLP's width: 55,296 on ViT-B/16.

    Equal to Hugging Face peft's IA3 on key, value and fc2 (huggingface/peft, Apache-2.0), where q, k and v are
    maps of their own. The paper is about language models (r-three/t-few @ 114dece, MIT) and has no vision recipe.

    Differs: a scale of keys or values that is 0 to the last bit gets no gradient (`vpeft.methods.scaling`).

    Raises:
        ValueError: an Eva that reads its fused qkv as a tensor and keeps the biases apart.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.attn = Modules[Outputs]()
        self.inner = Modules[Inputs]()
        for block in backbone.blocks:
            for affine, rows in block.group(("k", "v")):
                if not affine.scalable:
                    raise ValueError(
                        f"ia3: {backbone.name} reads its fused qkv as a tensor and keeps the biases apart, so keys and "
                        "values cannot be scaled. Build it with qkv_fused=False."
                    )
                self.attn.append(Outputs(rows, affine.shape[0]))
            self.inner.append(Inputs(block.affines["fc2"].shape[1]))

    def attach(self, backbone: Backbone) -> None:
        maps = [affine for block in backbone.blocks for affine, _ in block.group(("k", "v"))]
        for affine, scale in zip(maps, self.attn, strict=True):
            affine.edit(scale)
        for block, scale in zip(backbone.blocks, self.inner, strict=True):
            block.affines["fc2"].edit_input(scale)

    def merge(self, backbone: Backbone) -> None:
        maps = [affine for block in backbone.blocks for affine, _ in block.group(("k", "v"))]
        for affine, scale in zip(maps, self.attn, strict=True):
            affine.merge(scale)

    def merge_inputs(self, backbone: Backbone) -> None:
        for block, scale in zip(backbone.blocks, self.inner, strict=True):
            block.affines["fc2"].merge(scale)


class Outputs(nn.Module):
    """Scales of some rows of a map: k and v of a fused qkv, or one of them that is a map of its own."""

    def __init__(self, rows: list[slice], out_dim: int) -> None:
        super().__init__()
        self.before, self.after = rows[0].start, out_dim - rows[-1].stop
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(part.stop - part.start)) for part in rows)

    def all_rows(self) -> Tensor:
        return F.pad(torch.cat(list(self.scales)), (self.before, self.after), value=1.0)

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.all_rows()
        return scale_shift(y, scale, torch.zeros_like(scale))

    def weight(self, w: Tensor) -> Tensor:
        return self.all_rows()[:, None] * w

    def bias(self, b: Tensor) -> Tensor:
        return self.all_rows() * b


class Inputs(nn.Module):
    """Scales of what a map reads."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_dim))

    def forward(self, x: Tensor) -> Tensor:
        return apply(Scale(), x, self.scale)

    def weight(self, w: Tensor) -> Tensor:
        return w * self.scale

    def bias(self, b: Tensor) -> Tensor:
        return b
