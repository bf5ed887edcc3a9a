"""RepAdapter (Luo et al., 2023, arXiv:2302.08106).

    h + s * up(down(h))        h = norm(x), what attention and MLP read; up in groups

No activation in between, so all of it merges into the maps that follow: W' = W (I + s U D), b' = b + s W (U a + c).
Shapes: R bottleneck, G groups, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules
from vpeft.rebuilt import linear

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class RepAdapter(nn.Module):
    """Linear adapters before every attention and MLP; 2 L (d r + r + d r / g + d) parameters: 239,808 on ViT-B/16.

    Without biases it is 221,184, 0.22 M. Follows the official code (luogen1996/RepAdapter @ 360992f, no licence file,
    Apache-2.0 in its headers): `repblock` there is the default here, `repattn` is `mlp: false`. s is searched in
    0.1, 0.5, 1, 5, 10 per task; drop_path is 0.1. In the README of its first commits (1040641) the per-task rows of
    the two look swapped against their averages; today's README has no such table.

    Differs: nothing known from that code in training; merging also covers q, k and v that are maps of their own.

    Args:
        bottleneck: r; 8 in the official code.
        groups: g, of the up-projection; 2 in the official code.
        scale: s, fixed; 1 in the official code.
        dropout: Before `up`; 0.1 in the official code.
        mlp: Also before the MLP.

    Raises:
        ValueError: groups do not divide the bottleneck or a block's width; a scale of 0; while merging, a Swin whose
            windows are filled up with zeros, which the adapter does not touch and merged weights would.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 8,
        groups: int = 2,
        scale: float = 1.0,
        dropout: float = 0.1,
        mlp: bool = True,
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"repadapter: bottleneck is {bottleneck}; at least 1 is needed.")
        if scale == 0:
            raise ValueError(f"repadapter: scale is {scale}; anything but 0 is needed, or nothing learns.")
        dims = {block.dim for block in backbone.blocks}
        if groups < 1 or any(size % groups for size in (bottleneck, *dims)):
            raise ValueError(
                f"repadapter: groups is {groups}; a divisor of the bottleneck {bottleneck} and of the width "
                f"{' and '.join(map(str, sorted(dims)))} is needed."
            )
        self.attn = Modules[Adapter](Adapter(b.dim, bottleneck, groups, scale, dropout) for b in backbone.blocks)
        self.mlp = Modules[Adapter](
            Adapter(block.dim, bottleneck, groups, scale, dropout) for block in backbone.blocks if mlp
        )

    def attach(self, backbone: Backbone) -> None:
        places = [block.attn for block in backbone.blocks]
        places += [block.mlp for block in backbone.blocks] if self.mlp else []
        for branch, adapter in zip(places, (*self.attn, *self.mlp), strict=True):
            branch.edit_input(adapter)

    def merge_inputs(self, backbone: Backbone) -> None:
        if any(block.pads for block in backbone.blocks):
            raise ValueError(
                f"repadapter: {backbone.name} fills its windows up with zeros at this image size, and merged weights "
                "would act on these too. Use an image size that its windows divide, or the adapter unmerged."
            )
        for block, adapter in zip(backbone.blocks, self.attn, strict=True):
            for affine, _ in block.group({"qkv", "gate"} & block.roles()):
                affine.merge_input(*adapter.matrix_and_shift())
        for block, adapter in zip(backbone.blocks if self.mlp else (), self.mlp, strict=True):
            for affine, _ in block.find("fc1"):
                affine.merge_input(*adapter.matrix_and_shift())


class Adapter(nn.Module):
    def __init__(self, dim: int, bottleneck: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Parameter(torch.zeros(groups, dim // groups, bottleneck // groups))  # G C/G R/G
        self.bias = nn.Parameter(torch.zeros(dim))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def dense_up(self) -> Tensor:  # C R
        return torch.block_diag(*self.up)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = self.dropout(linear(h, self.down.weight, self.down.bias))
        z = F.pad(z, (0, 1), value=1.0).flatten(0, -2)
        up = torch.cat([self.dense_up(), self.bias[:, None]], dim=1)  # the bias multiplies the one beside z
        # One fused pass over h; the zeros between groups cost less than a second pass.
        return torch.addmm(h.flatten(0, -2), z, up.T, alpha=self.scale).view(h.shape)

    def matrix_and_shift(self) -> tuple[Tensor, Tensor]:
        """The adapter as h -> M h + c."""
        up, down = self.dense_up(), self.down
        identity = torch.eye(len(up), device=up.device, dtype=up.dtype)
        return identity + self.scale * up @ down.weight, self.scale * (up @ down.bias + self.bias)
