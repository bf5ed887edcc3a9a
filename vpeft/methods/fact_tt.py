"""FacT-TT (Jie and Deng, AAAI 2023, arXiv:2212.03145).

    dW = s V S U        U: d -> r,  V: r -> d  of the whole network,  S: r x r of one map

The weights of all blocks, seen as one tensor, change by a tensor train: U and V are shared by q, k, v, proj, fc1 and
fc2 of every block, and each has its own S. fc1 is m blocks of d x d above each other, fc2 is m beside each other.
Trained on the outputs of the frozen maps, without dW (`vpeft/methods/fact.py` says what that saves); merged as dW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpeft.methods.fact import Change, Factors, blocks_of, check, maps
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class FactTT(nn.Module):
    """A tensor train through all linear maps; 2 d r + L (4 + 2 m) r^2 parameters: 61,440 for r = 16 on ViT-B/16.

    m is the width of the MLP over d, rounded up. Paper and official code (JieShibo/PETL-ViT @ 026e4f1, MIT) agree;
    the code has m = 4 and d = 768 written into it. The released runs have r and s per task: r of 4, 8 or 16 and s of
    0.01, 0.1, 1, 10 or 100. The official code has no merge.

    Differs: where the width of the MLP is no multiple of d (SwiGLU, SigLIP SO400M), the last of the m blocks is cut.
    On Swin, U and V are shared by the blocks of one stage, as widths differ between stages. On projections that
    torch reads as tensors (open_clip's attention) dW is formed while training too, and dropout is refused.

    Args:
        rank: r; 16 is the largest of the official code.
        scale: s, fixed; per task in the official code, 1 in 7 of its 19 tasks and 10 in 6.
        dropout: Between S and V; 0.1 in the official code.

    Raises:
        ValueError: a rank below 1; a scale that is not above 0; dropout on a map that is read as a tensor.
    """

    def __init__(self, backbone: Backbone, rank: int = 16, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        check("fact_tt", backbone, rank, scale, dropout)
        factors = {str(dim): Factors(dim, rank) for dim in dict.fromkeys(block.dim for block in backbone.blocks)}
        self.factors = nn.ModuleDict(factors)
        self.updates = Modules[Change](
            Change(factors[str(dim)], Core(*blocks_of(dim, affine), rank), affine, scale, dropout)
            for dim, _, affine in maps(backbone)
        )

    def attach(self, backbone: Backbone) -> None:
        for (_, _, affine), update in zip(maps(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (_, _, affine), update in zip(maps(backbone), self.updates, strict=True):
            affine.merge(update)


class Core(nn.Module):
    def __init__(self, gives: int, takes: int, rank: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.empty(gives * rank, takes * rank))
        nn.init.kaiming_uniform_(self.s, a=5**0.5)

    def forward(self) -> Tensor:
        return self.s
