"""What FacT-TT and FacT-TK share: a change of every linear map of every block, through one U and one V.

    dW = s V S U  in every d x d block of W;  S is made of r x r blocks, one for each of W's

Trained on the output of the frozen map, y + s V (S U) x, where S U is formed and dW is not: forward and backward of
ViT-B's qkv at batch 16 take 149 ms so and 189 ms with dW (r = 16, one CPU thread). Merged as dW.
Shapes: R rank, D width, M and N blocks of D in what a map gives and takes; the last block is cut where it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.rebuilt import linear
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

ROLES = ("qkv", "proj", "fc1", "fc2")


def maps(backbone: Backbone) -> Iterator[tuple[int, str, Affine]]:
    """Every map that is changed, with the width of its block and its role, in the order of the network."""
    for block in backbone.blocks:
        for role in ROLES:
            for affine, _ in block.find(role):
                yield block.dim, role, affine


def blocks_of(dim: int, affine: Affine) -> tuple[int, int]:
    """How many blocks of `dim` a map gives and takes: qkv 3 and 1, fc2 1 and 4."""
    return -(-affine.shape[0] // dim), -(-affine.shape[1] // dim)


def check(method: str, backbone: Backbone, rank: int, scale: float, dropout: float) -> None:
    """Refuse options that no FacT can have, and those that this backbone has no place for."""
    if rank < 1:
        raise ValueError(f"{method}: rank is {rank}; at least 1 is needed.")
    if not scale > 0:
        raise ValueError(f"{method}: scale is {scale}; a number above 0 is needed.")
    if dropout and not all(affine.called for _, _, affine in maps(backbone)):
        raise ValueError(
            f"{method}: dropout is {dropout}, but the attention of {backbone.name} reads its projections as tensors, "
            "so that their inputs are never seen. Set dropout to 0, or take the same weights from timm."
        )


class Factors(nn.Module):
    """U [R D] and V [D R] of all blocks of one width."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, dim))
        self.v = nn.Parameter(torch.zeros(dim, rank))
        nn.init.kaiming_uniform_(self.u, a=5**0.5)


class Change(nn.Module):
    """The update of one map; `core()` is its S [MR NR]."""

    def __init__(self, factors: Factors, core: nn.Module, affine: Affine, scale: float, dropout: float) -> None:
        super().__init__()
        self.shared = (factors,)  # a tuple: the method owns them
        self.core = core
        self.out_dim, self.in_dim = affine.shape
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def down(self) -> Tensor:
        u = self.shared[0].u
        return (self.core().unflatten(1, (-1, len(u))) @ u).flatten(1)[:, : self.in_dim]  # MR in

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        v = self.shared[0].v
        dim, rank = v.shape
        z = self.dropout(linear(x, self.down()))
        if self.out_dim % dim:
            return y + self.scale * F.linear(z.unflatten(-1, (-1, rank)), v).flatten(-2)[..., : self.out_dim]
        # One fused pass over y, whose rows are taken apart into their blocks.
        return torch.addmm(y.reshape(-1, dim), z.reshape(-1, rank), v.T, alpha=self.scale).view(y.shape)

    def weight(self, w: Tensor) -> Tensor:
        v = self.shared[0].v
        delta = (v @ self.down().unflatten(0, (-1, v.shape[1]))).flatten(0, 1)  # MD in
        return w + self.scale * delta[: self.out_dim]

    def bias(self, b: Tensor) -> Tensor:
        return b
