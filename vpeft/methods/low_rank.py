"""What the low-rank methods share: where they act, and  W x + s B A x  as an update of one map.

Shapes: R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.rebuilt import linear
from vpeft.seams import Affine, Block


def maps(method: str, block: Block, targets: Sequence[str], dropout: float = 0.0) -> list[tuple[Affine, list[slice]]]:
    """The maps of a block that `targets` name, each with the rows that are updated.

    Args:
        method: Name of the method, for the errors.
        block: Block of the backbone.
        targets: Roles: q k v qkv proj fc1 fc2.
        dropout: On the input of the maps.

    Raises:
        ValueError: A target that this backbone does not have, that is named twice or is a norm; dropout on a
            map that is read as a tensor.
    """
    found: dict[int, tuple[Affine, list[slice]]] = {}
    named = [(role, *entry) for role in targets for entry in block.find(role)]
    for role, affine, rows in named:
        if len(affine.shape) != 2:
            raise ValueError(f"{method}: target {role} is a norm, and a norm has no matrix to update at low rank.")
        if dropout and not affine.called:
            raise ValueError(
                f"{method}: dropout is {dropout}, but the attention of this backbone reads '{role}' as a "
                "tensor, so that its input is never seen. Set dropout to 0, or take the same weights from timm."
            )
        taken = found.setdefault(id(affine), (affine, []))[1]
        if any(rows.start < other.stop and other.start < rows.stop for other in taken):
            raise ValueError(f"{method}: targets {list(targets)} name the same map twice.")
        taken.append(rows)
    return list(found.values())


class Down(Protocol):
    """A: whatever has a weight [R, in]."""

    @property
    def weight(self) -> Tensor: ...


def new_down(in_dim: int, rank: int) -> nn.Linear:
    """A as LoRA starts it."""
    down = nn.Linear(in_dim, rank, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    return down


class LowRank(nn.Module):
    """The update of one map: a pair (A, B) for each of its row groups, or one A for them all.

    Args:
        down: The A; the method owns them.
        rows: The row groups.
        out_dim: Rows of W.
        rank: R.
        scale: s.
        dropout: On the input of A.
    """

    def __init__(
        self,
        down: Sequence[Down],
        rows: list[slice],
        out_dim: int,
        rank: int,
        scale: float,
        dropout: nn.Dropout | None = None,
    ) -> None:
        super().__init__()
        self.shared = tuple(down), dropout or nn.Identity()  # a tuple: the method owns them
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

    def hidden(self, x: Tensor) -> Tensor:
        """A x, dropout before it."""
        _, dropout = self.shared
        return linear(dropout(x), self.a())

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.hidden(x)
        # One fused pass over y: it is the largest tensor here.
        return torch.addmm(y.flatten(0, -2), z.flatten(0, -2), self.b().T, alpha=self.scale).view(y.shape)

    def weight(self, w: Tensor) -> Tensor:
        return w + self.scale * self.b() @ self.a()

    def bias(self, b: Tensor) -> Tensor:
        return b
