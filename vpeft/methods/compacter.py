"""Compacter (Mahabadi et al., NeurIPS 2021, arXiv:2106.04647).

    x + y + A(y)                           y = attn(norm(x)), and again y = mlp(norm(x))
    A(y) = up(gelu(down(y))),              down and up are z -> z W + b
    W = sum_i  A_i (x) (s_i t_i)           i = 1 .. n

Houlsby adapters whose matrices are sums of n Kronecker products. The n matrices A_i are shared by all
of them; s_i t_i, of rank k, belongs to one.

W is formed at every step: it is d r numbers, few beside the tokens, and one product with it is less work than n.

Shapes: A is n n n, s is n d/n k, t is n k r/n, W is d r (of `down`; of `up` d and r change places).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.methods.bottleneck import check
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Compacter(nn.Module):
    """Adapters of Kronecker products; n^3 + 2 L ((2 k + 1) (d + r)) parameters, L of them without `attention`:
    57,088 for r = 24, n = 4, k = 1 on ViT-B/16.

    Paper and code (rabeehk/compacter @ e123daa, no licence) put it into T5. The code trains T5's norms too:
    `method: [{name: compacter}, {name: layernorm}]`. `attention: false` is Compacter++. Where a start is
    not in the paper the code is followed: A_i normal with deviation 1e-4, s_i and t_i Xavier uniform with gain
    sqrt(2), biases zero. So it starts near the backbone and not as it.

    Differs: there is no vision code; places are those of T5, whose norms stand before the branch as in a ViT.

    Args:
        bottleneck: r; 24 is d / 32 on T5-base, which is as wide as ViT-B.
        products: n; 4 in the official code.
        rank: k of s_i t_i; 1 in the paper.
        attention: After the attention too.

    Raises:
        ValueError: a value below 1; a width of the backbone or of the bottleneck that n does not divide.
    """

    def __init__(
        self, backbone: Backbone, bottleneck: int = 24, products: int = 4, rank: int = 1, attention: bool = True
    ) -> None:
        super().__init__()
        check("compacter", bottleneck)
        if products < 1 or rank < 1:
            raise ValueError(f"compacter: products is {products} and rank {rank}; at least 1 is needed of both.")
        for width in (bottleneck, *(block.dim for block in backbone.blocks)):
            if width % products:
                raise ValueError(
                    f"compacter: products is {products}, which does not divide {width}; it must divide the "
                    f"bottleneck and every width of {backbone.name}."
                )
        self.rule = Rule(products)
        self.mlp, self.attn = (
            Modules[Adapter](Adapter(self.rule, block.dim, bottleneck, rank) for block in blocks)
            for blocks in (backbone.blocks, backbone.blocks if attention else [])
        )

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.mlp, strict=True):
            block.mlp.edit(adapter)
        for block, adapter in zip(backbone.blocks, self.attn, strict=False):
            block.attn.edit(adapter)


class Rule(nn.Module):
    """The n matrices A_i."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.a = nn.Parameter(torch.empty(n, n, n))
        nn.init.normal_(self.a, std=1e-4)


class Adapter(nn.Module):
    def __init__(self, rule: Rule, dim: int, bottleneck: int, rank: int) -> None:
        super().__init__()
        self.down = Product(rule, dim, bottleneck, rank)
        self.up = Product(rule, bottleneck, dim, rank)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return y + self.up(F.gelu(self.down(y), approximate="tanh"))


class Product(nn.Module):
    """z W + b."""

    def __init__(self, rule: Rule, in_dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.shared = (rule,)  # in a tuple: Compacter owns it
        self.s = nn.Parameter(torch.empty(rule.n, in_dim // rule.n, rank))
        self.t = nn.Parameter(torch.empty(rule.n, rank, out_dim // rule.n))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        for factor in (*self.s, *self.t):
            nn.init.xavier_uniform_(factor, gain=2**0.5)

    def forward(self, z: Tensor) -> Tensor:
        (rule,) = self.shared
        w = torch.einsum("iab,ick,ikd->bdac", rule.a, self.s, self.t)  # out in, each as two axes
        return F.linear(z, w.flatten(2).flatten(0, 1), self.bias)
