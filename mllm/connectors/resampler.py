"""The Perceiver resampler of Flamingo (Alayrac et al., NeurIPS 2022, arXiv:2204.14198), as in OpenFlamingo
(Awadalla et al., 2023, arXiv:2308.01390).

    l <- l + W_o Attn(q = W_q LN l,  kv = W_kv [LN x; LN l])
    l <- l + W_2 gelu(W_1 LN l)                                   no biases; at the end LN l

Shapes: I images, B sequences, T media of a sequence, F frames of a medium, N vision tokens, M latents, D width,
H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.shapes import TextShape, VisionShape
from mllm.sizes import positive
from vpeft.modules import Modules


class Resampler(nn.Module):
    """A Perceiver, and a linear map to the width of the language model.

    M D + depth (4 A D + 2 ratio D^2 + 6 D) + 2 D parameters with A = heads head_dim, 63,019,008 for D = 1024, and
    d (D + 1) of the map to text width d. Where `dim` is given, D (d_v + 1) of a map before.

    Latents start as N(0, 1), as in OpenFlamingo: equal latents would stay equal for ever.

    Args:
        tokens: M; 64 in Flamingo.
        dim: D. None takes the features as they are (Flamingo). A number maps them to this width first; if it is the
            language model's, no map follows (TinyLLaVA).
        depth: Layers; this and what follows as in OpenFlamingo.
        heads: H.
        head_dim: Width of a head.
        ratio: Hidden width of a layer's MLP, over D.

    Raises:
        ValueError: a size below 1.
    """

    packable = True

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        tokens: int = 64,
        dim: int | None = None,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        width = vision.dim if dim is None else dim
        self.perceiver = Perceiver(width, tokens, depth, heads, head_dim, ratio)
        self.into = nn.Identity() if dim is None else nn.Linear(vision.dim, width)
        self.proj = nn.Identity() if dim == text.dim else nn.Linear(width, text.dim)

    def forward(self, features: Tensor) -> Tensor:
        media = self.into(features)[:, None, None]  # I 1 1 N D
        return self.proj(self.perceiver(media)[:, 0])


class Perceiver(nn.Module):
    """Media [B T F N D] to [B T M D], each on its own.

    Args:
        dim: D.
        latents: M.
        depth: Layers.
        heads: H.
        head_dim: Width of a head.
        ratio: Hidden width of a layer's MLP, over D.
        media: Most media of a sequence; each place has an embedding of its own, added to the medium. 0 has none.
        frames: Most frames of a medium; the same.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        dim: int,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ratio: int = 4,
        media: int = 0,
        frames: int = 0,
    ) -> None:
        super().__init__()
        positive(dim=dim, tokens=latents, depth=depth, heads=heads, head_dim=head_dim, ratio=ratio)
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.media = nn.Parameter(torch.randn(media, 1, dim)) if media else None
        self.frames = nn.Parameter(torch.randn(frames, 1, dim)) if frames else None
        self.layers = Modules[Layer](Layer(dim, heads, head_dim, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        media, frames = x.shape[1:3]
        if self.frames is not None:
            x = x + self.frames[:frames]
        x = x.flatten(2, 3)  # B T F*N D
        if self.media is not None:
            x = x + self.media[:media]
        latents = self.latents.expand(*x.shape[:2], -1, -1)
        for layer in self.layers:
            latents = layer(x, latents)
        return self.norm(latents)


class Layer(nn.Module):
    """Latents [... M D] that have looked at x [... N D] and at each other."""

    def __init__(self, dim: int, heads: int, head_dim: int, ratio: int) -> None:
        super().__init__()
        inner, self.heads = heads * head_dim, heads
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(dim, 2 * inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim * ratio, bias=False),
            nn.GELU(),
            nn.Linear(dim * ratio, dim, bias=False),
        )

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        asking = self.norm_latents(latents)
        q = self._heads(self.q(asking))
        k, v = self.kv(torch.cat([self.norm_media(x), asking], dim=-2)).chunk(2, dim=-1)
        y = F.scaled_dot_product_attention(q, self._heads(k), self._heads(v))  # ... H M D/H
        latents = latents + self.out(y.transpose(-2, -3).flatten(-2))
        return latents + self.mlp(latents)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
