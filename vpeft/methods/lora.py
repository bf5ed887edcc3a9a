"""LoRA (Hu et al., ICLR 2022, arXiv:2106.09685).

    W x + (alpha / r) B A x        A: d -> r,  B: r -> out

Trained on the output of the frozen map, so neither B A nor a gradient of the size of W is formed; merged into W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from vpeft.methods.low_rank import LowRank, maps, new_down
from vpeft.modules import Modules
from vpeft.seams import Affine, Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LoRA(nn.Module):
    """Low-rank updates of chosen linear maps; r (in + out) parameters each: 294,912 for r = 8 on ViT-B/16.

    The count is the same for q and v with an A each, and for NOAH's q, k and v under one A.
    NOAH (ZhangYuanhan-AI/NOAH @ e9c55f3) is `targets: [qkv], shared_a: true, alpha: <rank>, dropout: 0.1`.

    On projections that torch reads as tensors (open_clip's attention) the update acts on the weight while
    training too, so that B A is formed. `qkv` is one map with one A where the backbone fuses it, and three where it
    does not.

    Args:
        rank: r.
        alpha: The update is scaled by alpha / rank.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are the paper's.
        shared_a: One A for all targets among q, k and v of a block.
        dropout: On the input of A.

    Raises:
        ValueError: a rank below 1; an alpha of 0; a target that this backbone does not have, that is named twice or is
            a norm; dropout on a map that is read as a tensor.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 8,
        alpha: float = 8.0,
        targets: Sequence[str] = ("q", "v"),
        shared_a: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if rank < 1 or not targets:
            raise ValueError(f"lora: rank is {rank} and targets {list(targets)}; both have to be there.")
        if alpha == 0:
            raise ValueError(f"lora: alpha is {alpha}; anything but 0 is needed, or nothing learns.")
        self.targets, self.scale = tuple(targets), alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.down = Modules[nn.Linear]()
        self.updates = Modules[LowRank]()
        for block in backbone.blocks:
            attention = {id(affine) for affine, _ in block.find("qkv")}
            common: list[nn.Linear] = []  # the A that the attention's maps share
            for affine, rows in self.maps(block):
                out_dim, in_dim = affine.shape
                if shared_a and id(affine) in attention:
                    if not common:
                        common.append(self._new_down(in_dim, rank))
                    self.updates.append(LowRank(tuple(common), rows, out_dim, rank, self.scale, self.dropout))
                else:
                    downs = tuple(self._new_down(in_dim, rank) for _ in rows)
                    self.updates.append(LowRank(downs, rows, out_dim, rank, self.scale, self.dropout))

    def _new_down(self, in_dim: int, rank: int) -> nn.Linear:
        self.down.append(down := new_down(in_dim, rank))
        return down

    def maps(self, block: Block) -> list[tuple[Affine, list[slice]]]:
        """The maps of a block that are updated, each with the rows that are."""
        return maps("lora", block, self.targets, self.dropout.p)

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in self.maps(block)]
