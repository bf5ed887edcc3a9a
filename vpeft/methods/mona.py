"""Mona (Yin et al., CVPR 2025, arXiv:2408.08345).

    s + A(s)        s = x + attn(norm(x)), and again s = x + mlp(norm(x))
    A(s) = up(drop(gelu(M(down(g * LN(s) + h * s)))))
    M(z) = u + W u,    u = z + (DW3 z + DW5 z + DW7 z) / 3

Two bottlenecks a block, each on the residual stream after a branch. Depthwise convolutions of three sizes over the map
of the patches bring what a token's surroundings show.

Shapes: B images, N tokens, C channels, R bottleneck, H W grid, P prefix tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules
from vpeft.seams import Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Mona(nn.Module):
    """Convolutional bottlenecks after attention and MLP; 2 L (d (2 r + 5) + r^2 + 88 r) parameters: 2,684,928 on
    ViT-B/16, 3,667,456 on Swin-B.

    As in Leiyi-Hu/mona @ 5deeac9 (Apache-2.0): r is 64 at every width, g starts at 1e-6 and h at 1, down and up as
    normals of deviation 0.02 without shift, the convolutions as torch starts them. So it does not start as the
    backbone, unless `zero_init`.

    Differs: the three depthwise convolutions are one of 7 x 7 with the mean of their kernels, which is the same map.
    Written for Swin; on a ViT each prefix token (class token, registers, prompts) is convolved as an image of one pixel
    of its own, so that it meets the kernels' centres only.

    Args:
        bottleneck: r; 64 in the official code, whatever it is asked for.
        dropout: Before `up`; 0.1 in the official code.
        zero_init: `up` starts as zero, so that all starts as the backbone; not in the official code.

    Raises:
        ValueError: a bottleneck below 1.
    """

    def __init__(self, backbone: Backbone, bottleneck: int = 64, dropout: float = 0.1, zero_init: bool = False) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"mona: bottleneck is {bottleneck}; at least 1 is needed.")
        self.attn, self.mlp = (
            Modules[Adapter](Adapter(block.dim, bottleneck, dropout, zero_init) for block in backbone.blocks)
            for _ in range(2)
        )

    def attach(self, backbone: Backbone) -> None:
        for block, attn, mlp in zip(backbone.blocks, self.attn, self.mlp, strict=True):
            for branch, adapter in ((block.attn, attn), (block.mlp, mlp)):
                adapter.block = block
                branch.edit(adapter)


class Adapter(nn.Module):
    block: Block  # knows the grid, and how many prefix tokens there are when other methods have added theirs

    def __init__(self, dim: int, size: int, dropout: float, zero_init: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.g = nn.Parameter(torch.full((dim,), 1e-6))
        self.h = nn.Parameter(torch.ones(dim))
        self.down = nn.Linear(dim, size)
        self.convs = Modules[nn.Conv2d](nn.Conv2d(size, size, side, groups=size) for side in (3, 5, 7))
        self.mix = nn.Linear(size, size)  # W
        self.up = nn.Linear(size, dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if zero_init:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        s = x + y.reshape(x.shape)
        u = self.convolve(self.down(self.norm(s) * self.g + s * self.h))
        return y + self.up(self.dropout(F.gelu(u + self.mix(u)))).reshape(y.shape)

    def convolve(self, z: Tensor) -> Tensor:
        """z + (DW3 z + DW5 z + DW7 z) / 3 of any tokens of the block."""
        around = zip(self.convs, (2, 1, 0), strict=True)
        kernel = torch.stack([F.pad(conv.weight, 4 * [zeros]) for conv, zeros in around]).mean(0)  # R 1 7 7
        bias = torch.stack([conv.bias for conv in self.convs if conv.bias is not None]).mean(0)
        prefix, patches = self.block.split(z)  # B P R, B H W R
        patches = F.conv2d(patches.permute(0, 3, 1, 2), kernel, bias, padding=3, groups=len(kernel))
        prefix = prefix * kernel[:, 0, 3, 3] + bias
        return z + self.block.join(prefix, patches.permute(0, 2, 3, 1), z)
