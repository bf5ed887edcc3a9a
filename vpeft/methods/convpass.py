"""Convpass (Jie and Deng, 2022, arXiv:2207.07039).

    x + attn(h) + s * C(h),  h = norm1(x)        x + mlp(h) + s * C(h),  h = norm2(x)
    C(h) = up(drop(g(conv(g(down(h))))))         g(t) = t * sigmoid(1.702 t)

A convolutional bottleneck beside the attention and another beside the MLP: a 3 x 3 convolution over the map of the
patches brings the locality that attention lacks. It starts as zero, since `up` does.

Shapes: B images, N tokens, C channels, R bottleneck, H W grid, P prefix tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules
from vpeft.rebuilt import linear
from vpeft.seams import Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Convpass(nn.Module):
    """Convolutions beside attention and MLP; 2 L (2 d r + 9 r^2 + 2 r + d) parameters: 327,552 for r = 8 on ViT-B/16.

    Half of them with `attention_only`, the paper's Convpass_attn: 163,776. Each prefix token (class token, registers,
    prompts) is convolved as an image of one pixel of its own, so that it meets the kernel's centre only; it is
    computed as a linear map. Paper and official code (JieShibo/PETL-ViT @ 026e4f1, MIT) agree; the code has r = 8,
    d = 768 and a grid of 14 x 14 written into it. The released runs choose s and `conv_init` per task.

    Args:
        bottleneck: r; 8 in the official code.
        scale: s, fixed; 0.01, 0.1, 1, 10 or 100 per task in the official code, where 1 lies in the middle.
        attention_only: No convolution beside the MLP.
        conv_init: `identity`: the convolution starts as the identity, the default of the official code; `xavier`:
            Xavier's uniform distribution.
        dropout: Before `up`; 0.1 in the official code.
        drop_path: Stochastic depth of s * C(h) of its own, 0 at the first block and this much at the last; 0.1 in the
            official code, where that of the branches is 0.1 too.

    Raises:
        ValueError: a bottleneck below 1; a scale that is not above 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 8,
        scale: float = 1.0,
        attention_only: bool = False,
        conv_init: Literal["identity", "xavier"] = "identity",
        dropout: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"convpass: bottleneck is {bottleneck}; at least 1 is needed.")
        if not scale > 0:
            raise ValueError(f"convpass: scale is {scale}; a number above 0 is needed.")
        if not 0 <= drop_path < 1:
            raise ValueError(f"convpass: drop_path is {drop_path}; a number from 0 to below 1 is needed.")
        self.branches = ("attn",) if attention_only else ("attn", "mlp")
        last = max(1, len(backbone.blocks) - 1)
        self.adapters = Modules[Bypass](
            Bypass(block.dim, bottleneck, scale, conv_init, dropout, drop_path * index / last)
            for index, block in enumerate(backbone.blocks)
            for _ in self.branches
        )

    def attach(self, backbone: Backbone) -> None:
        places = [(block, branch) for block in backbone.blocks for branch in self.branches]
        for (block, branch), adapter in zip(places, self.adapters, strict=True):
            adapter.block = block
            (block.attn if branch == "attn" else block.mlp).edit(adapter)


class Bypass(nn.Module):
    block: Block  # knows the grid, and how many prefix tokens there are when other methods have added theirs

    def __init__(self, dim: int, bottleneck: int, scale: float, conv_init: str, dropout: float, drop: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.up = nn.Linear(bottleneck, dim)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop)
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        if conv_init == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for part in (self.down, self.conv, self.up):
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        prefix, patches = self.block.split(quick_gelu(linear(h, self.down.weight, self.down.bias)))  # B P R, B H W R
        patches = self.conv(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        prefix = F.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
        z = self.dropout(quick_gelu(self.block.join(prefix, patches, h)))
        # s * up(z): what is scaled is small, what is added to y is the largest tensor here.
        return y + self.drop_path(F.linear(self.scale * z, self.up.weight, self.scale * self.up.bias))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
