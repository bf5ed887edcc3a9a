"""The D-Abstractor of Honeybee (Cha et al., CVPR 2024, arXiv:2312.06742).

    v = Z + p        positions q = AdaptiveAvgPool(v)        learned queries h, and where they look, r
    h <- LN(h + SelfAttn(q, k = h + q,  v = h))
    h <- LN(h + Deform(query = h + q,  at r,  values = v))        deformable attention, arXiv:2010.04159
    h <- LN(h + W_2 relu(W_1 h))                                  at the end H = W h

Shapes: I images, N patches, D width, h w patch grid, M tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.connectors.c_abstractor import small
from mllm.connectors.grid import patches, square, to_map, to_tokens
from mllm.shapes import TextShape, VisionShape
from mllm.sizes import positive
from vpeft.dense.deform_attn import DeformableAttention
from vpeft.modules import Modules


class DAbstractor(nn.Module):
    """A decoder that samples the patch grid; for vision width d_v, text width d, width D and N patches

    N D + M (D + 2) + depth (6 (D^2 + D) + 3 heads points (D + 1) + 2 D ffn + ffn + 7 D) + d (D + 1) parameters, and
    D (d_v + 1) of a map before if d_v is not D: 55,944,032 for 1024, 4096, 1024 and 576. End tokens add D each.

    Each query first looks at its cell of a regular M-grid over the image, and learns where to look. Positions start as
    N(0, .02), truncated, queries as N(0, 1), and deformable attention as in Deformable-DETR.

    Differs: pooled features are the positions of the queries, the official default, and never their content; one
    level; the self-attention is torch's, which starts Xavier-uniform. A last map is there even if d = D.

    Args:
        tokens: M, a square; 144 in the official configuration, as are all defaults.
        dim: D.
        depth: Layers.
        heads: Of both attentions.
        points: That a head samples.
        ffn: Hidden width of a layer's MLP.
        dropout: On each of a layer's three branches.
        end_tokens: Learned tokens that follow the M, before the last map.

    Raises:
        ValueError: tokens that are no square or more a side than the grid has; a size below 1; heads that do not
            divide D.
    """

    packable = True

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        tokens: int = 144,
        dim: int = 1024,
        depth: int = 6,
        heads: int = 8,
        points: int = 4,
        ffn: int = 1024,
        dropout: float = 0.1,
        end_tokens: int = 0,
    ) -> None:
        super().__init__()
        positive(dim=dim, depth=depth, heads=heads, points=points, ffn=ffn)
        if dim % heads:
            raise ValueError(f"heads is {heads}, which does not divide dim, {dim}; give a divisor of it.")
        self.vision, self.side = vision, square(tokens, vision)
        self.tokens = tokens + end_tokens
        self.into = nn.Identity() if vision.dim == dim else nn.Linear(vision.dim, dim)
        self.positions = small(1, math.prod(vision.grid), dim)
        self.queries = nn.Parameter(torch.randn(1, tokens, dim))
        self.reference = nn.Parameter(spread(self.side, vision.grid))
        self.layers = Modules[Layer](Layer(dim, heads, points, ffn, dropout) for _ in range(depth))
        self.end_tokens = small(1, end_tokens, dim) if end_tokens else None
        self.proj = nn.Linear(dim, text.dim)

    def forward(self, features: Tensor) -> Tensor:
        value = self.into(patches(features, self.vision)) + self.positions  # I N D
        at = to_tokens(F.adaptive_avg_pool2d(to_map(value, self.vision.grid), self.side))  # I M D
        x = self.queries.expand(len(value), -1, -1)
        for layer in self.layers:
            x = layer(x, at, self.reference, value, self.vision.grid)
        if self.end_tokens is not None:
            x = torch.cat([x, self.end_tokens.expand(len(x), -1, -1)], dim=1)
        return self.proj(x)


class Layer(nn.Module):
    """Queries [I M D] that have looked at each other and at the grid."""

    def __init__(self, dim: int, heads: int, points: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.deform = DeformableAttention(dim, heads, 1, points)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn), nn.ReLU(), nn.Linear(ffn, dim))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, at: Tensor, reference: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        asking = x + at
        y, _ = self.attention(asking, asking, x, need_weights=False)
        x = self.norm1(x + self.dropout(y))
        y = self.deform(x + at, reference[:, :, None], value, [grid])
        x = self.norm2(x + self.dropout(y))
        return self.norm3(x + self.dropout(self.mlp(x)))


def spread(side: int, grid: tuple[int, int]) -> Tensor:
    """Places of side x side queries, x before y, from the middle of the first patch to that of the last; [1 M 2]."""
    y, x = (torch.linspace(0.5, n - 0.5, side) / n for n in grid)
    return torch.stack([x.expand(side, side), y[:, None].expand(side, side)], dim=-1).flatten(0, 1)[None]
