"""The MLP of LLaVA-1.5 (Liu et al., CVPR 2024, arXiv:2310.03744).

H = W_2 gelu(W_1 Z + b_1) + b_2        gelu exact; every vision token Z becomes one token
"""

from itertools import pairwise

from torch import Tensor, nn

from mllm.shapes import TextShape, VisionShape


class MLP(nn.Module):
    """Linear maps with GELU between them, `mlp{depth}x_gelu` of LLaVA; d (d_v + 1) + (depth - 1) d (d + 1) parameters
    for vision width d_v and text width d: 20,979,712 for depth 2, 1024 and 4096, and 31,467,520 for 5120.

    Starts as torch starts linear maps, as the official code does.

    Args:
        depth: Linear maps; 2 in LLaVA-1.5.

    Raises:
        ValueError: a depth below 1.
    """

    packable = True

    def __init__(self, vision: VisionShape, text: TextShape, depth: int = 2) -> None:
        super().__init__()
        self.tokens = vision.tokens
        self.layers = mlp(vision.dim, text.dim, depth)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def mlp(in_dim: int, out_dim: int, depth: int, act: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """`depth` linear maps from in_dim to out_dim, all but the first of width out_dim, with `act` between them.

    Raises:
        ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"an MLP of depth {depth} was asked for; it needs at least 1 linear map.")
    layers: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
    for before, after in pairwise([out_dim] * depth):
        layers += [act(), nn.Linear(before, after)]
    return nn.Sequential(*layers)
