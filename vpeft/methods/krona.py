"""KronA (Edalati et al., 2022, arXiv:2212.10650).

    W x + s (A (x) B) x        A: o x i,  B: p x k,  W: o p x i k

A Kronecker product is of full rank with few numbers. Trained on the output of the frozen map by
(A (x) B) x = A X B^T, with x written as the matrix X, so the product is not formed; merged into W.
Only for projections that torch reads as tensors (open_clip's attention) is it formed while training too.
Shapes: x is i k, its update o p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules
from vpeft.rebuilt import apply
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class KronA(nn.Module):
    """Kronecker updates of chosen linear maps; o i + p k parameters each, 2 L of them: 38,400 on ViT-B/16, where A is
    24 x 24 and B 32 x 32.

    No official code is known to us. A takes of each width the largest divisor that is at most `factor`, by default
    its square root, which is close to the fewest parameters. LoKr of Hugging Face peft (Apache-2.0) with both factors
    full is the same update, and its start is followed: A as zero, B as a torch linear.

    Differs: shapes and start are ours and not compared with the paper's; its two variants beside the feed-forward
    network (KronA_B, KronA_Bres) are not here.

    Args:
        scale: s, fixed; ours.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are the paper's.
        factor: Upper bound of A's two sizes; their square roots if none is given.

    Raises:
        ValueError: a scale of 0; a target that this backbone does not have, that is named twice or is a norm.
    """

    def __init__(
        self,
        backbone: Backbone,
        scale: float = 1.0,
        targets: Sequence[str] = ("q", "v"),
        factor: int | None = None,
    ) -> None:
        super().__init__()
        if not targets:
            raise ValueError("krona: targets is empty; at least one map is needed.")
        if scale == 0:
            raise ValueError(f"krona: scale is {scale}; anything but 0 is needed, or nothing learns.")
        if factor is not None and factor < 1:
            raise ValueError(f"krona: factor is {factor}; at least 1 is needed.")
        self.targets = tuple(targets)
        self.updates = Modules[Kronecker]()
        for affine, rows in self._maps(backbone):
            if len(affine.shape) != 2:
                raise ValueError(f"krona: targets {list(targets)} name a norm, and a norm has no matrix to update.")
            self.updates.append(Kronecker(rows, affine.shape[0], affine.shape[1], scale, factor))

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._maps(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._maps(backbone), self.updates, strict=True):
            affine.merge(update)

    def _maps(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in block.group(self.targets)]


class Kronecker(nn.Module):
    """The update of one map: a pair (A, B) for each of its row groups."""

    def __init__(self, rows: list[slice], out_dim: int, in_dim: int, scale: float, factor: int | None) -> None:
        super().__init__()
        self.rows, self.out_dim, self.scale = rows, out_dim, scale
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        i = _divisor(in_dim, factor)
        for part in rows:
            size = part.stop - part.start
            o = _divisor(size, factor)
            self.a.append(nn.Parameter(torch.zeros(o, i)))
            self.b.append(nn.Parameter(torch.empty(size // o, in_dim // i)))
            nn.init.kaiming_uniform_(self.b[-1], a=5**0.5)

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        parts, at = [], 0
        for rows, a, b in zip(self.rows, self.a, self.b, strict=True):
            change = apply(Product(), x, a, b)
            parts += [y[..., at : rows.start], torch.add(y[..., rows], change, alpha=self.scale)]
            at = rows.stop
        return torch.cat([*parts, y[..., at:]], dim=-1)

    def weight(self, w: Tensor) -> Tensor:
        for rows, a, b in zip(self.rows, self.a, self.b, strict=True):
            w = w + F.pad(self.scale * torch.kron(a, b), (0, 0, rows.start, self.out_dim - rows.stop))
        return w

    def bias(self, b: Tensor) -> Tensor:
        return b


class Product:
    """(A (x) B) x, that is A X B^T with x as a matrix X."""

    def __call__(self, x: Tensor, *theta: Tensor) -> Tensor:
        a, b = theta
        matrix = x.unflatten(-1, (a.shape[1], b.shape[1]))
        return torch.einsum("oi,...ik,pk->...op", a, matrix, b).flatten(-2)

    def of_x(self, g: Tensor, *theta: Tensor) -> Tensor:
        a, b = theta
        return self(g, a.T, b.T)

    def of_theta(self, g: Tensor, x: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        a, b = theta
        g, x = g.unflatten(-1, (len(a), len(b))), x.unflatten(-1, (a.shape[1], b.shape[1]))
        of_a = torch.einsum("...op,...ip->oi", g, F.linear(x, b))
        return of_a, torch.einsum("...ip,...ik->pk", torch.einsum("oi,...op->...ip", a, g), x)


def _divisor(size: int, at_most: int | None) -> int:
    bound = at_most or int(size**0.5)
    return max(d for d in range(1, min(size, bound) + 1) if size % d == 0)
