"""Pixel shuffle, as the projector of nanoVLM (Wiedmann et al., 2025, github.com/huggingface/nanoVLM) and of Idefics3
(Laurençon et al., 2024, arXiv:2408.12637).

    H = W [Z_1; ...; Z_{f f}]        the patches of a block of f x f, row by row, become one token

Shapes: I images, N vision tokens, C channels, h w patch grid.
"""

import torch
from torch import Tensor, nn

from mllm.connectors.grid import patches
from mllm.shapes import TextShape, VisionShape


class PixelShuffle(nn.Module):
    """f f d_v d parameters for vision width d_v and text width d: 11,796,480 for f = 4, 768 and 960.

    The grid need not be square. Channels of a token are ordered (row in the block, column in the block, channel), in
    nanoVLM as in Idefics3, so weights of either fit. No bias, weights N(0, .02), as in nanoVLM.

    Args:
        factor: f; 2 in nanoVLM-222M, 4 in nanoVLM-450M.

    Raises:
        ValueError: f below 1, or one that does not divide both sides of the grid.
    """

    packable = True

    def __init__(self, vision: VisionShape, text: TextShape, factor: int = 2) -> None:
        super().__init__()
        h, w = vision.grid
        if factor < 1 or h % factor or w % factor:
            known = [f for f in range(1, min(h, w) + 1) if not h % f and not w % f]
            raise ValueError(
                f"factor is {factor}, which does not divide the grid of {h} x {w} patches; "
                f"{', '.join(map(str, known))} would."
            )
        self.vision, self.factor = vision, factor
        self.tokens = h * w // factor**2
        self.proj = nn.Linear(vision.dim * factor**2, text.dim, bias=False)
        nn.init.normal_(self.proj.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(self.shuffle(features))

    def shuffle(self, features: Tensor) -> Tensor:
        """[I N C] to [I, h w / (f f), f f C]."""
        grid = patches(features, self.vision).unflatten(1, self.vision.grid)
        blocks = grid.unflatten(2, (-1, self.factor)).unflatten(1, (-1, self.factor))  # I h/f f w/f f C
        return torch.movedim(blocks, 2, 3).flatten(3).flatten(1, 2)
