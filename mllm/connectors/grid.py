"""The patch grid of features, for connectors that need one.

Shapes: I images, N vision tokens, C channels, h w patch grid.
"""

import math

from torch import Tensor

from mllm.shapes import VisionShape


def patches(features: Tensor, vision: VisionShape) -> Tensor:
    """Features [I N C] without their prefix tokens."""
    return features[:, vision.prefix :]


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens of the grid, row by row [I h*w C], as a map [I C h w]."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(x: Tensor) -> Tensor:
    """A map [I C h w] as tokens, row by row [I h*w C]."""
    return x.flatten(2).transpose(1, 2)


def square(tokens: int, vision: VisionShape) -> int:
    """The side of a square of `tokens` that the patch grid is pooled to.

    Raises:
        ValueError: tokens are no square, or more a side than the grid has patches.
    """
    side = math.isqrt(max(tokens, 1))
    if side * side != tokens:
        raise ValueError(f"tokens is {tokens}, which is not a square; {side**2} and {(side + 1) ** 2} are.")
    h, w = vision.grid
    if side > min(h, w):
        raise ValueError(
            f"tokens is {tokens}, {side} a side, and the grid has {h} x {w} patches; at most {min(h, w) ** 2} fit."
        )
    return side
