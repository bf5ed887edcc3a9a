"""Rein (Wei et al., CVPR 2024, arXiv:2312.04265).

    f + s D(S_- U(T_-) + f)        f the patches that leave a block,  S = softmax(f T^T / sqrt(d)),  T = A B
    queries = merge(cat[max_l V(T_l), mean_l V(T_l), V(T_L)])

Tokens T of every block are compared with its patches, and what they bring refines the features on their way to the
next block. The maps U, D and V are those of all blocks. The first token takes part in the softmax and brings nothing
(S_- and T_- are without it), so that a patch may stay as it is. Each token is linked to one query of a mask head.

Shapes: B images, C channels, H W grid, L blocks, M tokens, R rank, Q width of a query.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.seams import Block


class Rein(nn.Module):
    """Tokens after every block and two maps that all blocks share; L r (m + d) + 2 d (d + 1) + 1 parameters: 1,347,841
    on ViT-B/16, 2,530,817 on ViT-L. Full tokens are L m d in the place of L r (m + d). With queries of width q there
    are q (d + 1) + q (3 q + 1) more: 2,990,081 for q = 256 on ViT-L, the published 2.99 M.

    As in w1oves/Rein @ 7da85bc (GPL-3.0): s is a parameter, A and B (or T) start as U(-v, v)
    with v = sqrt(6 / (3 p^2 + w)) for patches of p pixels, w = sqrt(d r) for A and B and d for T. Not a no-op at the
    start, but near one.

    Queries go to a head `mask` with `linked: true`, in place of its own. A head that takes none leaves the refinement
    of features, which is the official code's `link_token_to_query=False`.

    Differs: written for one class token; here all that stands before the patches (registers, prompts) stays as it is. A
    head that reads the class token alone does not see what the tokens of the last block do.

    Args:
        tokens: M, of each block; 100 in the official configs.
        rank: R of the tokens; 16 there. None is full tokens.
        scale: s at the start; 0.001 there.
        query_dim: Q, the width of the mask head, 256 there; None makes no queries.

    Raises:
        ValueError: an option out of its range; a backbone that grows wider from stage to stage (Swin).
    """

    def __init__(
        self,
        backbone: Backbone,
        tokens: int = 100,
        rank: int | None = 16,
        scale: float = 0.001,
        query_dim: int | None = None,
    ) -> None:
        super().__init__()
        blocks = backbone.blocks
        count, dim = len(blocks), blocks[0].dim
        if tokens < 2:
            raise ValueError(f"rein: tokens is {tokens}; at least 2 are needed, because the first brings nothing.")
        if (rank is not None and rank < 1) or (query_dim is not None and query_dim < 1):
            raise ValueError(
                f"rein: rank is {rank} and query_dim is {query_dim}; each is at least 1, or null for none."
            )
        if len({block.dim for block in blocks}) > 1:
            raise ValueError(
                f"rein shares its maps between all blocks, and {backbone.name} grows wider from stage to stage, so "
                "that no one map fits. Use a plain ViT."
            )
        width = dim if rank is None else math.sqrt(dim * rank)
        bound = (6 / (3 * backbone.patch[0] * backbone.patch[1] + width)) ** 0.5
        shapes = [(tokens, dim)] if rank is None else [(tokens, rank), (rank, dim)]
        # T, or A and B.
        self.factors = nn.ParameterList(torch.empty(count, *shape).uniform_(-bound, bound) for shape in shapes)
        self.token_to_feature, self.delta = nn.Linear(dim, dim), nn.Linear(dim, dim)  # U and D
        self.scale = nn.Parameter(torch.tensor([scale]))  # FSDP shares out no scalar
        self.query_dim = query_dim
        if query_dim is not None:
            self.transform = nn.Linear(dim, query_dim)  # V
            self.merge_queries = nn.Linear(3 * query_dim, query_dim)

    def attach(self, backbone: Backbone) -> None:
        for index, block in enumerate(backbone.blocks):
            block.after(Refine(self, index, block))

    def tokens(self, index: int | slice) -> Tensor:
        """T of one block [M C], or of several [L M C]."""
        first, *second = (factor[index] for factor in self.factors)
        return first @ second[0] if second else first

    def refine(self, index: int, f: Tensor) -> Tensor:
        """Features [... C] after a block, refined."""
        t = self.tokens(index)  # M C
        s = (f @ t.T * f.shape[-1] ** -0.5).softmax(dim=-1)  # ... M
        return f + self.scale * self.delta(s[..., 1:] @ self.token_to_feature(t[1:]) + f)

    def queries(self) -> Tensor:
        """Queries [M Q] of a mask head, one for each token."""
        q = self.transform(self.tokens(slice(None)))  # L M Q
        return self.merge_queries(torch.stack([q.amax(0), q.mean(0), q[-1]], dim=-1).flatten(1))  # M 3Q -> M Q


class Refine:
    """Rein at one block."""

    def __init__(self, rein: Rein, index: int, block: Block) -> None:
        self.rein, self.index, self.block = rein, index, block

    def __call__(self, x: Tensor) -> Tensor:
        prefix, patches = self.block.split(x)  # B P C, B H W C
        return self.block.join(prefix, self.rein.refine(self.index, patches), x)
