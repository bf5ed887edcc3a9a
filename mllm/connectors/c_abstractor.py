"""The C-Abstractor of Honeybee (Cha et al., CVPR 2024, arXiv:2312.06742).

    H = MLP(RegStage(AdaptiveAvgPool(RegStage(Z + p))))        the patch grid to sqrt(M) x sqrt(M), MLP with SiLU

A RegStage is `depth` bottlenecks of RegNet with squeeze-and-excitation (Radosavovic et al., CVPR 2020,
arXiv:2003.13678), convolving every channel on its own.

Shapes: I images, N vision tokens, C channels, h w patch grid, M tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.connectors.grid import patches, square, to_map, to_tokens
from mllm.connectors.mlp import mlp
from mllm.shapes import TextShape, VisionShape
from mllm.sizes import positive


class CAbstractor(nn.Module):
    """Convolutions around a pooling; for vision width d_v, text width d, hidden width c and N patches

    N d_v + B(d_v) + d_v c + 2 c + (2 depth - 1) B(c) + d (c + 1) + (mlp_depth - 1) d (d + 1) parameters, where
    B(i) = i c + c^2 + 9 c + 6 c + 2 s c + s + c, s = round(i / 4), is a bottleneck from width i (the d_v c + 2 c are a
    shortcut that is missing if d_v = c): 37,398,016 for 1024, 4096, 1024 and 576.

    Positions start as N(0, .02), truncated; the rest as timm and torch start it. End tokens add d each.

    Args:
        tokens: M, a square; 144 in the official configuration, as are all defaults.
        hidden: c.
        depth: Bottlenecks before the pooling, and again behind it.
        mlp_depth: Linear maps of the MLP.
        end_tokens: Learned tokens that follow the M.

    Raises:
        ValueError: tokens that are no square or more a side than the grid has; a size below 1.
    """

    packable = True

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        tokens: int = 144,
        hidden: int = 1024,
        depth: int = 3,
        mlp_depth: int = 2,
        end_tokens: int = 0,
    ) -> None:
        super().__init__()
        from timm.layers.norm import LayerNorm2d  # loading all models of timm takes seconds
        from timm.models.regnet import RegStage

        positive(hidden=hidden, depth=depth)
        self.vision, self.side = vision, square(tokens, vision)
        self.tokens = tokens + end_tokens
        self.positions = small(1, math.prod(vision.grid), vision.dim)
        self.stage1, self.stage2 = (
            RegStage(depth, width, hidden, 1, 1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
            for width in (vision.dim, hidden)
        )
        self.mlp = mlp(hidden, text.dim, mlp_depth, nn.SiLU)
        self.end_tokens = small(1, end_tokens, text.dim) if end_tokens else None

    def forward(self, features: Tensor) -> Tensor:
        x = to_map(patches(features, self.vision) + self.positions, self.vision.grid)
        x = self.stage2(F.adaptive_avg_pool2d(self.stage1(x), self.side))
        x = self.mlp(to_tokens(x))
        return x if self.end_tokens is None else torch.cat([x, self.end_tokens.expand(len(x), -1, -1)], dim=1)


def small(*shape: int) -> nn.Parameter:
    """Normal numbers of deviation .02, truncated, as Honeybee starts positions and end tokens."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
