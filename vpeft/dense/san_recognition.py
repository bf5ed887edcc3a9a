"""SAN's recognition: CLIP's last blocks with one class token for every mask, each looking where its mask says.

    rows        [SLS_1 .. SLS_Q, CLS, patches]             SLS: copies of CLIP's class token before the last blocks
    SLS_i       sees patches (+ bias_i) and itself         nothing sees an SLS, so CLS and patches are CLIP's own
    y_i       = normalise(proj(ln_post(SLS_i)))

What is not seen is 100 below, not -inf, as in the official code.

Shapes: B images, Q queries, H heads of CLIP, N = 1 + h*w tokens of CLIP, C its width, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

UNSEEN = -100.0


def recognise(visual: Any, first: int, tokens: Tensor, grid: tuple[int, int], biases: Sequence[Tensor]) -> Tensor:
    """Embeddings [B Q E], of length 1, of Q masks.

    Args:
        visual: open_clip's VisionTransformer.
        first: The first of its blocks that runs here.
        tokens: What leaves the block before it, [B N C].
        grid: (h, w) of its patches.
        biases: One [B H or 1 Q . .] for all remaining blocks, or one for each.
    """
    queries = biases[0].shape[2]
    blocks = visual.transformer.resblocks[first:]
    masks = [additive_mask(bias, grid, blocks[0].attn.num_heads) for bias in biases]
    x = torch.cat([tokens[:, :1].expand(-1, queries, -1), tokens], dim=1)  # B Q+N C
    for number, block in enumerate(blocks):
        x = block(x, attn_mask=masks[number if len(masks) > 1 else 0])
    y = visual.ln_post(x[:, :queries])
    return F.normalize(y if visual.proj is None else y @ visual.proj, dim=-1)


def additive_mask(bias: Tensor, grid: tuple[int, int], heads: int) -> Tensor:
    """What is added to attention, [B*heads, Q+N, Q+N], from a bias [B H or 1 Q . .]; max-pooled to CLIP's grid."""
    batch, given, queries = bias.shape[:3]
    if given not in (1, heads):
        raise ValueError(f"san: a bias for {given} heads was given to CLIP's {heads}; it needs 1 or {heads}.")
    pooled = F.adaptive_max_pool2d(bias.flatten(1, 2), grid).unflatten(1, (given, queries)).flatten(3)
    pooled = pooled.expand(-1, heads, -1, -1).flatten(0, 1)  # B*heads Q h*w
    n = 1 + grid[0] * grid[1]
    apart = torch.full((queries, queries), UNSEEN, dtype=bias.dtype, device=bias.device).fill_diagonal_(0)
    class_token = torch.full((queries, 1), UNSEEN, dtype=bias.dtype, device=bias.device)
    left = torch.cat([apart, class_token], dim=1).expand(batch * heads, -1, -1)
    of_queries = torch.cat([left, pooled], dim=2)  # B*heads Q Q+N
    of_clip = torch.cat([bias.new_full((n, queries), UNSEEN), bias.new_zeros(n, n)], dim=1)
    return torch.cat([of_queries, of_clip.expand(batch * heads, -1, -1)], dim=1)
