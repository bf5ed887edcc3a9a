"""Visual Query Tuning (Tu et al., CVPR 2023, arXiv:2212.03220).

    q_i      = block_i(P_i | X_{i-1})            the tokens P_i read X_{i-1}, and X_{i-1} does not see them
    features = [n(cls), n(q_1), ..., n(q_L)]     n(v) = v / |v|

T learned query tokens at every block summarise its tokens for the head. The path of the image stays as it was, so
nothing runs backward through the backbone's tokens.
Shapes: B images, T queries, C channels, L blocks, D of the head's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.seams import Block


class VQT(nn.Module):
    """T queries at each of L blocks; L T d parameters, and L T with `weighted`: 9,216 for T = 1 on ViT-B/16.

    The head sees d (1 + L T) features, d (1 + L) with `weighted`; it holds most of what is trained. As in
    andytu28/VQT @ 9bca87e (BSD-3-Clause): queries U(-v, v) with v = sqrt(6 / (3 p^2 + d)) for patches of p pixels,
    dropout on them, and every layer's part of the features, the backbone's own first, scaled to unit length.

    Differs: the backbone's own features are what it pools, the class token or not. The official option that prunes
    features by a group lasso is not here.

    Args:
        queries: T; 1 in the paper's main table, the code's default is 5.
        weighted: One learned sum over the T outputs of a layer instead of all of them.
        dropout: On the queries; 0.1 in the official scripts.

    Raises:
        ValueError: the backbone attends within windows, so that no query can read a whole block; at the first step,
            a backbone that FSDP shares out.
    """

    def __init__(self, backbone: Backbone, queries: int = 1, weighted: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        if queries < 1:
            raise ValueError(f"vqt: queries is {queries}; at least 1 is needed.")
        if backbone.windowed:
            raise ValueError(
                f"vqt: {backbone.name} attends within windows, so there is no one set of keys for a query to read. "
                "Use a plain ViT, or dtl or lst on this backbone."
            )
        depth, dim = len(backbone.blocks), backbone.blocks[0].dim
        self.queries = nn.Parameter(torch.empty(depth, queries, dim))
        bound = (6 / (3 * backbone.patch[0] * backbone.patch[1] + dim)) ** 0.5
        nn.init.uniform_(self.queries, -bound, bound)
        self.combine = nn.Parameter(torch.ones(depth, queries)) if weighted else None
        self.dropout = nn.Dropout(dropout)
        self.added_features = depth * dim * (1 if weighted else queries)
        self.layers: list[Layer] = []

    def attach(self, backbone: Backbone) -> None:
        self.layers = [Layer(block) for block in backbone.blocks]
        for layer in self.layers:
            layer.block.before(layer.look)
        backbone.edit_features(self.widen)

    def widen(self, features: Tensor) -> Tensor:
        """[B, C] -> [B, D], from what the layers have seen of these images."""
        return self.features(features, *self._seen())

    def frozen(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """Features [B C], and keys and values [B heads N C/heads] of every block in turn."""
        return backbone.look(images), *self._seen()

    def _seen(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer.take()]

    def features(self, features: Tensor, *kv: Tensor) -> Tensor:
        parts = [features]
        for index, layer in enumerate(self.layers):
            q = self.dropout(self.queries[index].expand(len(features), -1, -1))
            q = layer.block.query(q, kv[2 * index], kv[2 * index + 1])  # B T C
            parts.append(q.flatten(1) if self.combine is None else self.combine[index] @ q)
        return torch.cat([F.normalize(part) for part in parts], dim=1)


class Layer:
    """What one block's queries read, kept until the head asks."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.seen: tuple[Tensor, Tensor] | None = None

    def look(self, x: Tensor) -> Tensor:
        if any(isinstance(p, DTensor) for p in self.block.module.parameters()):
            raise ValueError(
                "vqt: its queries read the weights of a block, forward and backward, when FSDP has put them away. Set "
                "train.strategy to ddp."
            )
        self.seen = self.block.keys_values(x)
        return x

    def take(self) -> tuple[Tensor, Tensor]:
        assert self.seen is not None, "the backbone runs before its features are widened"
        seen, self.seen = self.seen, None
        return seen
