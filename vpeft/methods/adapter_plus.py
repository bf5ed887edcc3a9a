"""Adapter+ (Steitz & Roth, CVPR 2024, arXiv:2406.06820).

    x + s * A(x)        after the block, s of width d
    A(x) = up(gelu(down(x)))

A bottleneck on the residual stream at the end of every block, scaled a channel at a time, with drop
path of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vpeft.methods.bottleneck import Bottleneck, check
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class AdapterPlus(nn.Module):
    """Bottlenecks after every block with a scale a channel; L (2 d r + r + 2 d) parameters: 165,984 for r = 8 on
    ViT-B/16.

    As in visinf/adapter_plus @ 191c4ab (Apache-2.0): both matrices start as a normal of deviation 0.01 cut at two of
    them, s at one, so that it starts near the backbone and not as it. The paper compares six positions of one
    bottleneck. `post` and `pre` are settings of this method; `intermediate` and `pfeiffer` of the method pfeiffer;
    `houlsby` and `parallel` are methods (the latter with `pre_norm: false, activation: gelu`).

    Args:
        bottleneck: r; 8 in the official default, 1 to 32 per task in the paper's best row.
        drop_path: Of A for whole images while training; 0.1 in the official code.
        position: `post` is after the block; `pre` between its attention and its MLP branch.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 8,
        drop_path: float = 0.1,
        position: Literal["post", "pre"] = "post",
    ) -> None:
        super().__init__()
        check("adapter_plus", bottleneck, drop_path=drop_path)
        self.position = position
        self.adapters = Modules[Adapter](Adapter(block.dim, bottleneck, drop_path) for block in backbone.blocks)

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.adapters, strict=True):
            if self.position == "post":
                block.after(adapter)
            else:
                block.attn.edit(adapter.before_mlp)


class Adapter(nn.Module):
    def __init__(self, dim: int, bottleneck: int, drop_path: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(dim, bottleneck, "gelu", drop_path=drop_path).init_normal(0.01)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.bottleneck(x)

    def before_mlp(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        """What the attention branch adds, so that the MLP branch finds x + s * A(x) of the stream between the two."""
        return y + self.scale * self.bottleneck(x + y)
