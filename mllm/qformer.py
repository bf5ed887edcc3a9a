"""The Q-Former of BLIP-2 (Li et al., ICML 2023, arXiv:2301.12597), a BERT (arXiv:1810.04805) whose queries see images.

    x <- LN(x + W_o Attn(x, x))                           queries and text together, under a mask
    x_q <- LN(x_q + W_o Attn(x_q, context))               queries alone, in every second layer
    x_q <- LN(x_q + W_2 gelu(W_1 x_q))                    queries
    x_t <- LN(x_t + U_2 gelu(U_1 x_t))                    text, with weights of its own

Shapes: B sequences, Q queries, T text tokens, N context tokens, D width, C context width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.sizes import positive
from vpeft.modules import Modules

KeysValues = tuple[Tensor, Tensor]  # [B H Q D/H] each, of one layer
Mode = Literal["unimodal", "bidirectional", "causal"]


class QFormer(nn.Module):
    """Learned queries, and if `vocab` is given text, through one transformer.

    Q D + 2 D + depth (4 D^2 + 9 D + 2 D hidden + hidden) + ceil(depth / cross_every) (2 D^2 + 2 C D + 6 D) parameters:
    105,162,240 for 32 queries, BERT-base and C = 1408. Text adds depth (2 D hidden + hidden + 3 D) + (vocab +
    positions) D: together 185,683,968 for BERT's vocabulary of 30,522.

    Queries start as N(0, .02): equal ones would stay equal for ever. So do weights and tables, and biases at zero, as
    in BERT. Queries have no positions. Norms have eps 1e-12 and, as the stream between layers is what they put out,
    stay in float32 under autocast.

    Args:
        queries: Q; 32 in BLIP-2.
        context_dim: C.
        dim: D; this and what follows as in BERT-base.
        depth: Layers.
        heads: H.
        hidden: Hidden width of the feed-forward maps.
        cross_every: Layers 0, cross_every, 2 cross_every ... read the context; 2 in BLIP-2.
        dropout: On embeddings, attention weights and every branch.
        vocab: Rows of the word table; None reads no text.
        positions: Longest text.

    Raises:
        ValueError: a size below 1, or heads that do not divide D.
    """

    def __init__(
        self,
        queries: int,
        context_dim: int,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        cross_every: int = 2,
        dropout: float = 0.1,
        vocab: int | None = None,
        positions: int = 512,
    ) -> None:
        super().__init__()
        positive(tokens=queries, dim=dim, depth=depth, heads=heads, hidden=hidden, cross_every=cross_every)
        positive(vocab=1 if vocab is None else vocab, positions=positions)
        if dim % heads:
            raise ValueError(f"heads is {heads}, which does not divide dim, {dim}; give a divisor of it.")
        self.queries = nn.Parameter(torch.empty(1, queries, dim))
        self.words = None if vocab is None else nn.Embedding(vocab, dim)
        self.positions = None if vocab is None else nn.Embedding(positions, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = Modules[Layer](
            Layer(dim, heads, hidden, None if i % cross_every else context_dim, vocab is not None, dropout)
            for i in range(depth)
        )
        self.apply(_start)
        nn.init.normal_(self.queries, std=0.02)

    def forward(
        self,
        context: Tensor | None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        mode: Mode = "bidirectional",
        past: Sequence[KeysValues] | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Queries and text to hidden states [B, Q + T, D], and the keys and values of every layer's self-attention.

        With context alone [B Q D]; with text alone, or text after `past`, [B T D]. BLIP-2's three losses need

        - contrastive: `forward(image)` and `forward(None, ids, mask)`, or both at once with mode `unimodal`,
        - matching: `forward(image, ids, mask)`,
        - generation: `forward(image, ids, mask, "causal")`, or on keys and values that are there already
          `forward(None, ids, mask, "causal", past)`.

        Args:
            context: What the queries look at, [B N C]; None leaves the queries out.
            text_ids: [B T] long.
            text_mask: 1 at text, 0 at padding, [B T].
            mode: Which of queries and text see each other, `attention_mask`.
            past: Keys and values of the queries alone, from `forward(image)`; text sees them, in front of its own.
            context_mask: 1 where the context counts, 0 where it is padding, [B N]; None counts all of it.

        Raises:
            ValueError: neither context nor text, past beside a context, text for a Q-Former that reads none, or a text
                that is too long.
        """
        if context is None and text_ids is None:
            raise ValueError("The Q-Former was given neither an image nor a text; it needs at least one of them.")
        if context is not None and past is not None:
            raise ValueError(
                "The Q-Former was given an image and keys and values of the past; past stands for the image."
            )
        parts, queries, mask = [], 0, None
        if context is not None:
            parts.append(self.queries.expand(len(context), -1, -1))
            queries = self.queries.shape[1]
        if text_ids is not None:
            parts.append(self._embed(text_ids))
            text_mask = torch.ones_like(text_ids) if text_mask is None else text_mask
            seen = queries if past is None else past[0][0].shape[2]
            mask = attention_mask(text_mask, seen, mode)[:, :, seen - queries :]
        if context_mask is not None:
            context_mask = context_mask.bool()[:, None, None]
        x = self.dropout(self.norm(torch.cat(parts, dim=1)))
        keys_values: list[KeysValues] = []
        for i, layer in enumerate(self.layers):
            x, own = layer(x, queries, mask, past[i] if past is not None else None, context, context_mask)
            keys_values.append(own)
        return x, keys_values

    def _embed(self, text_ids: Tensor) -> Tensor:
        if self.words is None or self.positions is None:
            raise ValueError("This Q-Former reads no text and was given one; build it with a vocab.")
        if text_ids.shape[1] > len(self.positions.weight):
            raise ValueError(
                f"A text of {text_ids.shape[1]} tokens was given to a Q-Former with {len(self.positions.weight)} "
                "positions. Cut the text, or build the Q-Former with more positions."
            )
        return self.words(text_ids) + self.positions.weight[: text_ids.shape[1]]


class Layer(nn.Module):
    """One layer of queries and text [B, Q + T, D]; `context_dim` None does not read the context."""

    def __init__(self, dim: int, heads: int, hidden: int, context_dim: int | None, text: bool, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, dim, heads, dropout)
        self.cross = None if context_dim is None else Attention(dim, context_dim, heads, dropout)
        self.query_mlp = FeedForward(dim, hidden, dropout)
        self.text_mlp = FeedForward(dim, hidden, dropout) if text else None

    def forward(
        self,
        x: Tensor,
        queries: int,
        mask: Tensor | None,
        past: KeysValues | None,
        context: Tensor | None,
        context_mask: Tensor | None,
    ) -> tuple[Tensor, KeysValues]:
        x, keys_values = self.attention(x, x, mask, past)
        parts = []
        if queries:
            q = x[:, :queries]
            if self.cross is not None:
                assert context is not None  # queries are there for it
                q, _ = self.cross(q, context, context_mask)
            parts.append(self.query_mlp(q))
        if x.shape[1] > queries:
            assert self.text_mlp is not None  # its words were embedded
            parts.append(self.text_mlp(x[:, queries:]))
        return torch.cat(parts, dim=1), keys_values


class Attention(nn.Module):
    """LN(x + W_o softmax(q k^T) v), with q from x [B R D] and k, v from the context [B K C]."""

    def __init__(self, dim: int, context_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim, dim)
        self.v = nn.Linear(context_dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        q, own = self._split(self.q(x)), (self._split(self.k(context)), self._split(self.v(context)))
        k, v = own if past is None else (torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
        return self.norm(x + self.dropout(self.out(y))), own

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H K D/H


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


def attention_mask(text_mask: Tensor, queries: int, mode: Mode) -> Tensor:
    """What each of queries and text may see of [queries, text]: bool [B, 1, Q + T, Q + T]. Padding is seen by nobody.

    Args:
        text_mask: 1 at text, 0 at padding, [B T].
        queries: Q.
        mode: `unimodal`: queries see queries, text sees text. `bidirectional`: all see all. `causal`: queries see
            queries, a token of text sees the queries and the text up to itself.
    """
    there = F.pad(text_mask.bool(), (queries, 0), value=True)[:, None, None]
    size = there.shape[-1]
    place = torch.arange(size, device=text_mask.device)
    row, column = place[:, None] < queries, place < queries  # which are queries
    if mode == "bidirectional":
        return there.expand(-1, -1, size, -1)
    if mode == "unimodal":
        return there & (row == column)
    return there & torch.where(row, column, place <= place[:, None])


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
