"""Tiny language models, and batches with images for connectors that act inside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mllm.connectors.gated_xattn import GatedXAttn
from mllm.connectors.visual_expert import VisualExpert
from mllm.connectors.zero_init_prompt import ZeroInitPrompt
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.shapes import Layout, VisionShape

VISION = VisionShape(6, (2, 2), prefix=1)
IN_LAYER = {
    "gated_xattn": (GatedXAttn, {"every": 2, "latents": 3, "depth": 1, "heads": 2, "head_dim": 4}),
    "zero_init_prompt": (ZeroInitPrompt, {"prompts": 3, "depth": 1, "dim": 8, "heads": 2}),
    "visual_expert": (VisualExpert, {}),
}
ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite")
FAMILIES = (*ROTARY, "opt", "gpt2", "gpt_neox")


def language_model(family: str = "llama", layers: int = 3, **options: Any) -> Any:
    """A random causal LM in eval mode, 16 wide with 4 heads and where there can be 2 of keys and values, 31 words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": 31}
    if family in ROTARY:
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 4}
    elif family == "opt":
        sizes |= {"ffn_dim": 24, "word_embed_proj_dim": 16}
    elif family == "gpt_neox":
        sizes |= {"intermediate_size": 24}
    sizes |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(sizes | options))).eval()
    for parameter in model.parameters():  # biases and norms too, and weights that make the logits differ
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@dataclass
class Batch:
    """Sequences of words and images, for one connector."""

    ids: Tensor
    attention: Tensor
    positions: Tensor
    layout: Layout
    features: Tensor

    def embeds(self, model: Any, connector: Any) -> Tensor:
        x = model.get_input_embeddings()(self.ids)
        return x.masked_scatter(self.layout.image_mask[..., None], connector(self.features).to(x.dtype))

    def inputs(self, model: Any, connector: Any) -> dict[str, Tensor]:
        """Look, and what the model is then called with."""
        connector.look(self.features, self.layout)
        return {
            "inputs_embeds": self.embeds(model, connector),
            "attention_mask": self.attention,
            "position_ids": self.positions,
        }


def batch(connector: Any, rows: Sequence[Sequence[int | str]], left: bool = False) -> Batch:
    """Sequences of word ids and image names; features follow from the name alone."""
    ids, images, times, names = [], [], [], []
    for row in rows:
        line, image, time, begun = [], [], [], 0
        for part in row:
            begun += isinstance(part, str)
            count = connector.tokens if isinstance(part, str) else 1
            line += [0 if isinstance(part, str) else part] * count
            image += [isinstance(part, str)] * count
            time += [begun] * count
        ids, images, times = [*ids, line], [*images, image], [*times, time]
        names += [part for part in row if isinstance(part, str)]
    row = [index for index, row in enumerate(rows) for part in row if isinstance(part, str)]
    attention = _pad([[1] * len(line) for line in ids], left)
    layout = Layout(
        _pad(images, left).bool(), _times(_pad(times, left), attention), torch.tensor(row, dtype=torch.long)
    )
    features = [torch.randn(VISION.tokens, VISION.dim, generator=_seeded(name)) for name in names]
    stacked = torch.stack(features) if features else torch.empty(0, VISION.tokens, VISION.dim)
    positions = (attention.cumsum(1) - 1) * attention
    return Batch(_pad(ids, left), attention, positions, layout, stacked)


def attached(name: str, model: Any, **options: Any) -> Any:
    """A connector of IN_LAYER in a model, its gates open."""
    torch.manual_seed(1)
    kind, defaults = IN_LAYER[name]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if name == "visual_expert" and base.config.model_type == "qwen2":
        options = {"qkv_bias": True} | options
    connector = kind(VISION, text_shape(base), **(defaults | options))
    connector.attach(Decoder(model))
    return connector


def open_up(connector: nn.Module) -> None:
    """Change everything a connector starts with, gates too."""
    torch.manual_seed(2)
    for parameter in connector.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)


def _pad(rows: Sequence[Sequence[Any]], left: bool) -> Tensor:
    length = max(map(len, rows))
    fill = [[0] * (length - len(row)) for row in rows]
    return torch.tensor([[*more, *row] if left else [*row, *more] for row, more in zip(rows, fill, strict=True)]).long()


def _times(times: Tensor, attention: Tensor) -> Tensor:
    return torch.where(attention.bool(), times, times.cummax(dim=1).values)


def _seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, name)))
