"""The visual expert of CogVLM (Wang et al., NeurIPS 2024, arXiv:2311.03079).

    q, k, v, o = W x        W of the expert where x is of an image, of the language model elsewhere
    W_down(silu(W_gate x) * W_up x)                                                         likewise
    image = [boi; GLU(patches); eoi],   GLU(z) = W_3(silu(W_1 u) * W_2 u),  u = gelu(LN W_0 z)

in every layer; norms and the one causal attention are shared.
Shapes: I images, B sequences, L columns, N vision tokens, P patches of an image, n rows of images, d width and F MLP
width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.shapes import Layout, TextShape, VisionShape
from mllm.window import Kept, Rows, Window
from vpeft.modules import Modules

if TYPE_CHECKING:
    from mllm.decoder import Decoder, Layer


class VisualExpert(nn.Module):
    """A second set of every layer's maps for the positions of images, and the GLU that brings the patches there.

    layers (2 d A + 2 d G + 3 d F) parameters for A = heads head_dim and G = kv_heads head_dim, 6,476,005,376 for 32
    layers of d = 4096, F = 11008; with biases of q, k, v layers (A + 2 G) more. The GLU has d_v d + 2 d + 3 d F + 2 d,
    142,622,720 for d_v = 1792.

    `attach` copies the maps of the language model, so that the expert starts as the model does: attach before a
    checkpoint is loaded. boi and eoi start as zeros, as in the official code. LoRA in the language model acts on text.

    Three masks, as in the official code: an image takes P + 2 positions of the sequence, the expert has those of boi
    and the patches, and the patches share one position of the rotation, so that what follows the image is as near to
    it as if it were one token. `position_ids` that the model is given count every column; they are changed here, where
    the rotation reads them. Differs: padding is masked as the attention mask says.

    Args:
        qkv_bias: The language model's maps q, k and v have biases (Qwen2), which the expert then has too.
    """

    packable = True

    def __init__(self, vision: VisionShape, text: TextShape, qkv_bias: bool = False) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.patches = vision.tokens - vision.prefix
        self.tokens = self.patches + 2
        self.glu = GLU(vision.dim, text.dim, text.hidden)
        self.boi, self.eoi = nn.Parameter(torch.zeros(1, text.dim)), nn.Parameter(torch.zeros(1, text.dim))
        self.layers = Modules[Expert](Expert(text, qkv_bias) for _ in range(text.layers))
        self._seen: Kept[Seen] = Kept("visual_expert saw no images: call look() before the language model runs.")

    def attach(self, decoder: Decoder) -> None:
        """
        Raises:
            ValueError: the language model is another one than the expert was built for, its weights are quantised, or
                one of the two has biases.
        """
        decoder.check(self.text)
        decoder.rotate_by(_Positions(self))
        for expert, layer in zip(self.layers, decoder.layers, strict=True):
            expert.copy(layer)
            for role in ("q", "k", "v", "o", "mlp"):
                layer.reroute(role, _AtImages(self, expert, role))

    def forward(self, features: Tensor) -> Tensor:  # I P+2 d
        patches = self.glu(features[:, self.vision.prefix :])
        boi, eoi = (end.expand(len(features), 1, -1).to(patches.dtype) for end in (self.boi, self.eoi))
        return torch.cat([boi, patches, eoi], dim=1)

    def look(self, features: Tensor, layout: Layout) -> None:
        """
        Raises:
            ValueError: there are not as many features as images, or images take other than P + 2 positions each.
        """
        window = Window(features, layout)
        image, time = layout.image_mask, layout.time
        if image.sum() != len(layout.row) * self.tokens:
            raise ValueError(
                f"{int(image.sum())} positions are of images; {len(layout.row)} images take {self.tokens} each. "
                "Build the batch with the tokens of this connector."
            )
        place = (image.long().cumsum(dim=1) - 1) % self.tokens  # within its image: 0 boi, 1 to P patches, P + 1 eoi
        expert = image & (place <= self.patches)
        # Every patch but the first of its image moves what follows one position nearer.
        inside = place.sub(1).clamp(0, self.patches - 1) - (self.patches - 1)
        nearer = time * (self.patches - 1) + torch.where(image, inside, 0)
        self._seen.value = Seen(window, expert, nearer)

    def positions(self, position_ids: Tensor, x: Tensor, first: int) -> Tensor:
        """Positions [B' T] of the rotation for x [B' T d], from those that count every column."""
        seen = self._seen.get()
        return position_ids - seen.window.take(seen.nearer, x, first, lasts=True)

    def rows(self, x: Tensor, first: int) -> Rows | None:
        """The positions of x [B' T d] that are the expert's; None for generated text."""
        seen = self._seen.get()
        if seen.window.start(x, first) >= seen.window.columns:
            return None
        return seen.window.once(x, first, lambda: Rows.of(seen.window.take(seen.expert, x, first)))


class Seen(NamedTuple):
    """Of the columns [B L] that were looked at: which are the expert's, and how much nearer each is than it counts."""

    window: Window
    expert: Tensor
    nearer: Tensor


class Expert(nn.Module):
    """The maps of one layer."""

    def __init__(self, text: TextShape, qkv_bias: bool) -> None:
        super().__init__()
        inner, shared = text.heads * text.head_dim, text.kv_heads * text.head_dim
        self.q = nn.Linear(text.dim, inner, bias=qkv_bias)
        self.k, self.v = (nn.Linear(text.dim, shared, bias=qkv_bias) for _ in range(2))
        self.o = nn.Linear(inner, text.dim, bias=False)
        self.gate, self.up = (nn.Linear(text.dim, text.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(text.hidden, text.dim, bias=False)
        self.act: nn.Module = nn.SiLU()

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))

    @torch.no_grad()
    def copy(self, layer: Layer) -> None:
        """Take the values of the language model's maps, and its activation."""
        for role in ("q", "k", "v", "o", "gate", "up", "down"):
            ours, theirs = getattr(self, role), layer.plain(role)
            if theirs.weight.shape != ours.weight.shape or not theirs.weight.is_floating_point():
                raise ValueError(
                    f"visual_expert copies the weights of the language model, and those of '{role}' are stored as "
                    f"{theirs.weight.dtype} {tuple(theirs.weight.shape)}. Load the model unquantised."
                )
            if (theirs.bias is None) != (ours.bias is None):
                has = "no bias" if theirs.bias is None else "a bias"
                raise ValueError(
                    f"visual_expert: '{role}' of the language model has {has}. qkv_bias says whether q, k and v have "
                    "one; models with others are not supported."
                )
            ours.weight.copy_(theirs.weight)
            if ours.bias is not None:
                ours.bias.copy_(theirs.bias)
        self.act = layer.part("mlp").act_fn


class GLU(nn.Module):
    def __init__(self, media: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(media, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.gate, self.up = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        u = F.gelu(self.norm(self.proj(z)))
        return self.down(F.silu(self.gate(u)) * self.up(u))


@dataclass
class _AtImages:
    connector: VisualExpert
    expert: Expert
    role: str

    def rows(self, x: Tensor, first: int) -> Rows | None:
        return self.connector.rows(x, first)

    def __call__(self, x: Tensor) -> Tensor:  # n in -> n out
        return getattr(self.expert, self.role)(x.to(self.expert.o.weight.dtype))


@dataclass
class _Positions:
    connector: VisualExpert

    def __call__(self, position_ids: Tensor, x: Tensor, first: int) -> Tensor:
        return self.connector.positions(position_ids, x, first)
