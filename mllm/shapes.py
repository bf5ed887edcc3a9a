"""The shapes that a connector stands between, and where images are in a batch of sequences.

Shapes: B sequences, L positions, I images of a whole batch, N vision tokens of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VisionShape:
    """What a vision tower gives for an image: [N, dim], prefix tokens first, then the grid row by row.

    Args:
        dim: Width.
        grid: Height and width of the patch grid.
        prefix: Class token and registers among the N tokens.
    """

    dim: int
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """N."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TextShape:
    """What a language model is made of.

    Args:
        dim: Width of its hidden states.
        layers: Decoder layers.
        heads: Of its attention.
        kv_heads: Of keys and values; fewer than `heads` under grouped queries.
        head_dim: Width of a head.
        hidden: Width inside its MLPs.
        vocab: Rows of its embedding.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int


@dataclass(frozen=True)
class Layout:
    """Where the images of a batch are.

    Args:
        image_mask: [B, L] bool, positions that image tokens take.
        time: [B, L] long, images begun up to and including a position, counted within its own sample.
        row: [I] long, the sequence of each image, ascending.
    """

    image_mask: Tensor
    time: Tensor
    row: Tensor
