"""FacT-TK (Jie and Deng, AAAI 2023, arXiv:2212.03145).

    dW = s V S U        S^T = C x_3 p        U: d -> r,  V: r -> d,  C: r x r x r  of the whole network
    x_3 sums over C's last axis; p: r numbers of one d x d block, a column of P

The weights of all blocks, seen as one tensor, change by a Tucker decomposition: what q, k, v, proj and the blocks of
fc1 and fc2 have of their own are r numbers each. fc1 is m blocks of d x d above each other, fc2 is m beside each other.
Trained on the outputs of the frozen maps, without dW (`vpeft/methods/fact.py` says what that saves); merged as dW.

Shapes: R rank, J the blocks of one map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpeft.methods.fact import Change, Factors, blocks_of, check, maps
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class FactTK(nn.Module):
    """A Tucker form of all linear maps; 2 d r + r^3 + L (4 + 2 m) r parameters: 86,528 for r = 32 on ViT-B/16.

    m is the width of the MLP over d, rounded up. Where paper and official code (JieShibo/PETL-ViT @ 026e4f1, MIT)
    differ, the code is followed: the S of fc1 and of fc2 are not m blocks after each other but interleaved, row
    c m + j of fc1's holding row c of block j, and fc2's is not transposed. The released runs have r and s per task: r
    of 16 or 32 and s of 0.01, 0.1, 1, 10 or 100. The official code has no merge, and d = 768, m = 4 and L = 12 written
    into it.

    Differs: where the width of the MLP is no multiple of d (SwiGLU, SigLIP SO400M), the last of the m blocks is cut.
    On Swin, U, V and C are shared by the blocks of one stage, as widths differ between stages. On projections that
    torch reads as tensors (open_clip's attention) dW is formed while training too, and dropout is refused.

    Args:
        rank: r; 32 is the largest of the official code.
        scale: s, fixed; per task in the official code, where 1 lies in the middle.
        dropout: Between S and V; 0.1 in the official code.

    Raises:
        ValueError: a rank below 1; a scale that is not above 0; dropout on a map that is read as a tensor.
    """

    def __init__(self, backbone: Backbone, rank: int = 32, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        check("fact_tk", backbone, rank, scale, dropout)
        widths: dict[str, int] = {}  # d, and how many blocks of d x d all maps of that width have
        places = []
        for dim, role, affine in maps(backbone):
            first, count = widths.get(str(dim), 0), max(blocks_of(dim, affine))
            places.append((str(dim), role, affine, slice(first, first + count)))
            widths[str(dim)] = first + count
        factors = {dim: Factors(int(dim), rank) for dim in widths}
        tensors = {dim: Tucker(rank, count) for dim, count in widths.items()}
        self.factors, self.tensors = nn.ModuleDict(factors), nn.ModuleDict(tensors)
        self.updates = Modules[Change](
            Change(factors[dim], Core(tensors[dim], columns, role), affine, scale, dropout)
            for dim, role, affine, columns in places
        )

    def attach(self, backbone: Backbone) -> None:
        for (_, _, affine), update in zip(maps(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (_, _, affine), update in zip(maps(backbone), self.updates, strict=True):
            affine.merge(update)


class Tucker(nn.Module):
    """C [R R R], and P [R blocks] of all blocks of one width."""

    def __init__(self, rank: int, blocks: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.empty(rank, rank, rank))
        self.p = nn.Parameter(torch.empty(rank, blocks))
        nn.init.xavier_uniform_(self.c)
        nn.init.xavier_uniform_(self.p)


class Core(nn.Module):
    """S of one map, from its columns of P."""

    def __init__(self, tucker: Tucker, columns: slice, role: str) -> None:
        super().__init__()
        self.shared = (tucker,)  # a tuple: the method owns it
        self.columns, self.role = columns, role

    def forward(self) -> Tensor:
        (tucker,) = self.shared
        cores = tucker.c @ tucker.p[:, self.columns]  # R R J
        if self.role == "fc2":
            return cores.flatten(1)  # R RJ
        if self.role == "fc1":
            return cores.flatten(1).T  # RJ R
        return cores.permute(2, 1, 0).flatten(0, 1)  # JR R
