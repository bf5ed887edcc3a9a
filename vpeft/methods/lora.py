"""LoRA (Hu et al., ICLR 2022, arXiv:2106.09685).

    W x + (alpha / r) B A x        A: d -> r,  B: r -> out

Trained on the output of the frozen map, so no gradient of W is ever formed; merged into W.
Shapes: B images, N tokens, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules
from vpeft.seams import Affine, Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LoRA(nn.Module):
    """Low-rank updates of chosen linear maps; r (in + out) parameters each: 294,912 for r = 8 on ViT-B/16.

    The count is the same for q and v with an A each, and for NOAH's q, k and v under one A.
    NOAH (ZhangYuanhan-AI/NOAH @ e9c55f3) is `targets: [qkv], shared_a: true, alpha: <rank>, dropout: 0.1`.

    On projections that torch reads as tensors (open_clip's attention) the update acts on the weight while
    training too. `qkv` is one map with one A where the backbone fuses it, and three where it does not.

    Args:
        rank: r.
        alpha: The update is scaled by alpha / rank.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are the paper's.
        shared_a: One A for all targets among q, k and v of a block.
        dropout: On the input of A.

    Raises:
        ValueError: a target that this backbone does not have, that is named twice or is a norm; dropout
            on a map that is read as a tensor.
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
        down = nn.Linear(in_dim, rank, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        self.down.append(down)
        return down

    def maps(self, block: Block) -> list[tuple[Affine, list[slice]]]:
        """The maps of a block that are updated, each with the rows that are."""
        found: dict[int, tuple[Affine, list[slice]]] = {}
        named = [(role, *entry) for role in self.targets for entry in block.find(role)]
        for role, affine, rows in named:
            if len(affine.shape) != 2:
                raise ValueError(f"lora: target {role} is a norm, and a norm has no matrix to update at low rank.")
            if self.dropout.p and not affine.called:
                raise ValueError(
                    f"lora: dropout is {self.dropout.p}, but the attention of this backbone reads '{role}' as a "
                    "tensor, so that its input is never seen. Set dropout to 0, or take the same weights from timm."
                )
            taken = found.setdefault(id(affine), (affine, []))[1]
            if any(rows.start < other.stop and other.start < rows.stop for other in taken):
                raise ValueError(f"lora: targets {list(self.targets)} name the same map twice.")
            taken.append(rows)
        return list(found.values())

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in self.maps(block)]


class LowRank(nn.Module):
    """The update of one map: a pair (A, B) for each of its row groups, or one A for them all."""

    def __init__(
        self,
        down: tuple[nn.Linear, ...],
        rows: list[slice],
        out_dim: int,
        rank: int,
        scale: float,
        dropout: nn.Dropout,
    ) -> None:
        super().__init__()
        self.shared = down, dropout  # a tuple: LoRA owns them
        self.rows, self.out_dim, self.scale = rows, out_dim, scale
        self.width: int | None = None  # of a subnet of NOAH's: how much of one rank acts
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(part.stop - part.start, rank)) for part in rows)

    def a(self) -> Tensor:  # R in, or one R of each row group
        down, _ = self.shared
        return down[0].weight[: self.width] if len(down) == 1 else torch.cat([a.weight for a in down])

    def b(self) -> Tensor:  # out R, zero on rows that are not updated
        down, _ = self.shared
        if len(self.rows) == 1 and len(self.up[0]) == self.out_dim:
            return self.up[0][:, : self.width]
        rank = self.up[0].shape[1]
        padded = []
        for index, (part, up) in enumerate(zip(self.rows, self.up, strict=True)):
            before = 0 if len(down) == 1 else index * rank
            after = 0 if len(down) == 1 else (len(self.rows) - 1 - index) * rank
            padded.append(F.pad(up, (before, after, part.start, self.out_dim - part.stop)))
        return torch.stack(padded).sum(0)

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        _, dropout = self.shared
        z = F.linear(dropout(x), self.a())
        # One fused pass over y: it is the largest tensor here.
        return torch.addmm(y.flatten(0, -2), z.flatten(0, -2), self.b().T, alpha=self.scale).view(y.shape)

    def weight(self, w: Tensor) -> Tensor:
        return w + self.scale * self.b() @ self.a()

    def bias(self, b: Tensor) -> Tensor:
        return b
