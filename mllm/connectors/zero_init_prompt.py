"""Zero-initialised attention to prompts: LLaMA-Adapter (Zhang et al., ICLR 2024, arXiv:2303.16199) and LLaMA-Adapter V2
(Gao et al., 2023, arXiv:2304.15010).

    heads + tanh(g) softmax(q k(P)^T / sqrt(c)) v(P)       P = prompts of the layer + what the image gives
    image = LN W blocks([queries; LN V features])          first K rows (V2)

at the last layers, for every position; k and v are the frozen maps of the layer, q is rotated and P is not. g = 0 at
first, one a head.
Shapes: I images, B sequences, N vision tokens, K prompts, H heads, G heads of keys and values, d width of the language
model, D width of the small blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mllm.shapes import Layout, TextShape, VisionShape
from mllm.sizes import positive
from mllm.window import Kept, Window
from vpeft.modules import Modules

if TYPE_CHECKING:
    from mllm.decoder import Decoder, Layer


class ZeroInitPrompt(nn.Module):
    """K prompts at each of the last L layers; takes no position in the sequence.

    L (K d + H) parameters, 1,229,760 for K = 10, L = 30, d = 4096, H = 32 (LLaMA-Adapter). The image adds
    d_v D + 3 D + D d + 3 d, and with blocks K D + depth (12 D^2 + 13 D): in all 61,731,552 for the 31 layers of V2 with
    d_v = D = 768 and 8 blocks. At the start the language model is what it was, to the bit.

    Prompts start as N(0, 1), as in the official code. With `depth: 0` the mean of the tokens takes the place of the
    queries, one vector that is added to all prompts: how LLaMA-Adapter reads an image, by a projection that its paper
    leaves open and its code does not contain.

    Differs: V2 adds every head's gate at layers without prompts too, where nothing reads it. Several images of a
    sequence are averaged; neither paper has them. A sequence without an image reads the prompts alone.

    Args:
        prompts: K.
        layers: L, the last ones; 30 of 32 in LLaMA-Adapter. None is all but the first, as in V2.
        depth: Small blocks; 8 in V2, and these are timm's.
        dim: D; 768 in V2.
        heads: Of the small blocks; 16 in V2.

    Raises:
        ValueError: a size below 1, more layers than there are, or `heads` does not divide `dim`.
    """

    packable = False
    tokens = 0

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        prompts: int = 10,
        layers: int | None = None,
        depth: int = 8,
        dim: int = 768,
        heads: int = 16,
    ) -> None:
        super().__init__()
        if layers is None:
            layers = max(1, text.layers - 1)
        positive(prompts=prompts, dim=dim, heads=heads)
        if depth < 0:
            raise ValueError(f"depth is {depth}; give 0, which reads the mean of the tokens, or a number of blocks.")
        if not 1 <= layers <= text.layers:
            raise ValueError(f"layers is {layers}; the language model has {text.layers}, so 1 to that many fit.")
        if dim % heads:
            raise ValueError(f"heads is {heads}, which does not divide dim, {dim}; give a divisor of it.")
        self.text = text
        self.layers = Modules[Prompts](Prompts(prompts, text) for _ in range(layers))
        self.into, self.into_norm = nn.Linear(vision.dim, dim), nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(prompts, dim)) if depth else None
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)))
        self.out, self.out_norm = nn.Linear(dim, text.dim), nn.LayerNorm(text.dim)
        self._seen: Kept[tuple[Window, Tensor]] = Kept(
            "zero_init_prompt saw no images: call look() before the language model runs."
        )

    def attach(self, decoder: Decoder) -> None:
        decoder.check(self.text)
        for prompts, layer in zip(self.layers, decoder.layers[-len(self.layers) :], strict=True):
            layer.attend_also(_Further(self, prompts))

    def forward(self, features: Tensor) -> Tensor:  # I 0 d
        return features.new_zeros(len(features), 0, self.text.dim)

    def look(self, features: Tensor, layout: Layout) -> None:
        window, images = Window(features, layout), self.image(features)
        rows, size = layout.row, len(layout.time)
        sums = images.new_zeros(size, *images.shape[1:]).index_add(0, rows, images)
        mean = sums / rows.bincount(minlength=size).clamp(min=1)[:, None, None]  # B K d
        self._seen.value = (window, mean)

    def image(self, features: Tensor) -> Tensor:
        """What is added to the prompts, [I K d]; [I 1 d] without blocks."""
        x = self.into_norm(self.into(features.to(self.into.weight.dtype)))
        if self.queries is None:
            x = x.mean(dim=1, keepdim=True)
        else:
            x = torch.cat([self.queries.expand(len(x), -1, -1), x], dim=1)  # I K+N D
            x = self.blocks(x)[:, : len(self.queries)]
        return self.out_norm(self.out(x))

    def read(self, prompts: Prompts, q: Tensor, layer: Layer) -> Tensor:
        """What rotated queries [B' H T c] of a layer read in its prompts; B' is a multiple of B."""
        window, image = self._seen.get()
        k, v = layer.keys_values((prompts.rows + image).to(q.dtype))  # B G K c
        beams = window.beams(q)
        return prompts(q, k.repeat_interleave(beams, dim=0), v.repeat_interleave(beams, dim=0), layer.scale)


class Prompts(nn.Module):
    """The prompts of one layer, and the gates of its heads."""

    def __init__(self, count: int, text: TextShape) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(count, text.dim))
        self.gate = nn.Parameter(torch.zeros(text.heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        y = F.scaled_dot_product_attention(q.to(k.dtype), k, v, scale=scale, enable_gqa=True)  # B' H T c
        return self.gate.tanh()[:, None, None] * y


@dataclass
class _Further:
    connector: ZeroInitPrompt
    prompts: Prompts

    def __call__(self, q: Tensor, layer: Layer) -> Tensor:
        return self.connector.read(self.prompts, q, layer)
