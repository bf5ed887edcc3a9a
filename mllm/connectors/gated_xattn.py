"""Gated cross-attention of Flamingo (Alayrac et al., NeurIPS 2022, arXiv:2204.14198), as in OpenFlamingo
(Awadalla et al., 2023, arXiv:2308.01390).

    x <- x + tanh(a) W_o Attn(q = W_q LN x,  kv = W_kv resampler(image))
    x <- x + tanh(b) W_2 gelu(W_1 LN x)                           before every n-th layer; no biases; a = b = 0 at first

Shapes: I images, B sequences, J most images of a sequence, N vision tokens, M latents, T positions, H heads, d width of
the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.connectors.resampler import Perceiver
from mllm.shapes import Layout, TextShape, VisionShape
from mllm.sizes import positive
from mllm.window import Kept, Window
from vpeft.modules import Modules

if TYPE_CHECKING:
    from mllm.decoder import Decoder


class GatedXAttn(nn.Module):
    """A resampler, a marker in the sequence where an image stands, and blocks that read the images before LM layers.

    A block has A (2 d + 2 d_v) + 2 ratio d^2 + 4 d + 2 parameters for inner width A = heads head_dim, 56,109,058 for
    d = 2560 and d_v = 1024; there are layers // every of them, the marker has d, and the resampler P(d_v), as in
    `mllm.connectors.resampler`. At the start the language model is what it was, to the bit.

    A position reads the image begun last in its own sequence (`immediate`), and nothing before the first one. Then it
    gets exactly 0 from the attention; the second line acts on all positions. Two cases are 0 here and not in the
    official code, where the softmax over nothing but masked scores is uniform, so that the mean of all images is read:
    text before the first image with `immediate: false`, and text behind a marker that has no image.

    Args:
        every: n; blocks stand before the layers n, 2 n, ... counted from 1. 1 in OpenFlamingo-3B, 2 in 4B, 4 in 9B.
        latents: M; this and what follows as in OpenFlamingo.
        depth: Layers of the resampler.
        heads: H, of resampler and blocks.
        head_dim: Width of a head.
        ratio: Hidden width of the MLPs, over their width.
        immediate: Read the last image begun; false reads all of them that have begun.

    Raises:
        ValueError: a size below 1, or `every` is more than there are layers.
    """

    packable = False
    tokens = 1

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        every: int = 1,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ratio: int = 4,
        immediate: bool = True,
    ) -> None:
        super().__init__()
        positive(latents=latents)
        if not 1 <= every <= text.layers:
            raise ValueError(f"every is {every}; the language model has {text.layers} layers, so 1 to that many fit.")
        self.text, self.every, self.immediate = text, every, immediate
        self.resampler = Perceiver(vision.dim, latents, depth, heads, head_dim, ratio)
        self.marker = nn.Parameter(torch.randn(1, text.dim) * 0.02)
        count = text.layers // every
        self.blocks = Modules[Block](Block(text.dim, vision.dim, heads, head_dim, ratio) for _ in range(count))
        self._seen: Kept[Seen] = Kept("gated_xattn has seen no images: call look() before the language model runs.")

    def attach(self, decoder: Decoder) -> None:
        decoder.check(self.text)
        for index, layer in enumerate(decoder.layers):
            if (index + 1) % self.every == 0:
                layer.before(_Before(self, index // self.every))

    def forward(self, features: Tensor) -> Tensor:  # I 1 d
        return self.marker.expand(len(features), 1, -1)

    def look(self, features: Tensor, layout: Layout) -> None:
        window = Window(features, layout)
        media = self.resampler(features[:, None, None].to(self.marker.dtype))[:, 0]  # I M d_v
        rows = layout.row
        counts = rows.bincount(minlength=len(layout.time))  # B
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        most = max(1, int(counts.max()))
        padded = media.new_zeros(len(counts), most, *media.shape[1:])
        padded = padded.index_put((rows, place), media).flatten(1, 2)  # B J*M d_v
        keys_values = [block.keys_values(padded) for block in self.blocks]
        self._seen.value = Seen(window, layout.time, counts, most, media.shape[1], keys_values)

    def read(self, index: int, x: Tensor, first: int) -> Tensor:
        """Tokens [B' T d] that have passed block `index`; B' is a multiple of B."""
        seen = self._seen.get()
        mask = seen.window.once(x, first, lambda: self._mask(seen, x, first))
        beside = x.unflatten(0, (seen.window.rows, -1)).flatten(1, 2)  # B beams*T d
        return self.blocks[index](beside.to(self.marker.dtype), *seen.keys_values[index], mask).to(x.dtype).view_as(x)

    def _mask(self, seen: Seen, x: Tensor, first: int) -> Tensor:
        """Which latents a position reads: B beams*T J*M."""
        time = seen.window.take(seen.time, x, first, lasts=True)
        time = time.unflatten(0, (seen.window.rows, -1)).flatten(1)[..., None]  # B beams*T 1
        image = torch.arange(1, seen.most + 1, device=time.device)
        there = image <= seen.counts[:, None, None]  # B 1 J
        reads = (image == time) if self.immediate else (image <= time)
        return (reads & there).repeat_interleave(seen.latents, dim=-1)


@dataclass
class Seen:
    """What the blocks read in one forward: of each sequence its images, and when they begin."""

    window: Window
    time: Tensor
    counts: Tensor
    most: int
    latents: int
    keys_values: list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, dim: int, media: int, heads: int, head_dim: int, ratio: int) -> None:
        super().__init__()
        inner, self.heads = heads * head_dim, heads
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(media, 2 * inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.attn_gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim * ratio, bias=False),
            nn.GELU(),
            nn.Linear(dim * ratio, dim, bias=False),
        )

    def keys_values(self, media: Tensor) -> tuple[Tensor, Tensor]:  # B H J*M head_dim each
        k, v = self.kv(media).chunk(2, dim=-1)
        return self._heads(k), self._heads(v)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn_gate.tanh() * self.attend(x, k, v, mask)
        return x + self.mlp_gate.tanh() * self.mlp(x)

    def attend(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """What x [B T d] reads where mask [B T J*M] allows it, and 0 where it allows nothing."""
        q = self._heads(self.q(self.norm(x)))
        idle = ~mask.any(dim=-1, keepdim=True)  # B T 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | idle)[:, None])  # a softmax needs something
        return self.out(y.transpose(1, 2).flatten(2).masked_fill(idle, 0))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass
class _Before:
    connector: GatedXAttn
    index: int

    def __call__(self, x: Tensor, first: int) -> Tensor:
        return self.connector.read(self.index, x, first)
