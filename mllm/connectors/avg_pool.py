"""Average pooling, as in DeCo (Yao et al., 2024, arXiv:2405.20985).

H = MLP(AdaptiveAvgPool(Z))        the patch grid to sqrt(M) x sqrt(M)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mllm.connectors.grid import patches, square, to_map, to_tokens
from mllm.connectors.mlp import mlp
from mllm.shapes import TextShape, VisionShape


class AvgPool(nn.Module):
    """The patch grid averaged, then an MLP; d (d_v + 1) + (depth - 1) d (d + 1) parameters for vision width d_v and
    text width d: 20,979,712 for depth 2, 1024 and 4096.

    Args:
        tokens: M, a square; 144 is that of Honeybee's abstractors.
        depth: Linear maps; 1 is a linear projection, 2 the MLP of LLaVA-1.5.

    Raises:
        ValueError: tokens that are no square or more a side than the grid has; a depth below 1.
    """

    packable = True

    def __init__(self, vision: VisionShape, text: TextShape, tokens: int = 144, depth: int = 2) -> None:
        super().__init__()
        self.vision, self.tokens = vision, tokens
        self.side = square(tokens, vision)
        self.layers = mlp(vision.dim, text.dim, depth)

    def forward(self, features: Tensor) -> Tensor:
        x = to_map(patches(features, self.vision), self.vision.grid)
        return self.layers(to_tokens(F.adaptive_avg_pool2d(x, self.side)))
