"""Tiny multimodal models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mllm import adapt
from mllm.connectors import build
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from tests.mllm.languages import language, model, tokenizer
from tests.zoo import MODELS
from vpeft.backbones import wrap

# Every connector, small; the grid of the towers is 4 x 4.
CONNECTORS: list[dict[str, Any]] = [
    {"name": "linear"},
    {"name": "mlp"},
    {"name": "avg_pool", "tokens": 4},
    {"name": "pixel_shuffle"},
    {"name": "c_abstractor", "tokens": 4, "hidden": 32, "depth": 1},
    {"name": "d_abstractor", "tokens": 4, "dim": 32, "depth": 1, "heads": 2, "ffn": 32, "dropout": 0.0},
    {"name": "resampler", "tokens": 3, "depth": 1, "heads": 2, "head_dim": 8},
    {"name": "qformer", "tokens": 3, "dim": 16, "depth": 2, "heads": 2, "hidden": 32, "dropout": 0.0},
    {
        "name": "qformer",
        "tokens": 3,
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "hidden": 32,
        "dropout": 0.0,
        "instructed": True,
    },
    {"name": "gated_xattn", "latents": 3, "depth": 1, "heads": 2, "head_dim": 8},
    {"name": "zero_init_prompt", "prompts": 3, "depth": 1, "dim": 16, "heads": 2},
    {"name": "visual_expert"},
]
NAMES = [f"{entry['name']}{'_instructed' * entry.get('instructed', False)}" for entry in CONNECTORS]
MLP = CONNECTORS[1]


def vlm(
    connector: dict[str, Any] = MLP,
    method: dict[str, Any] | None = None,
    family: str = "llama",
    vision: str = "timm_vit",
    adapted: dict[str, Any] | None = None,
    half: bool = False,
    checkpointing: bool = False,
) -> VLM:
    """A model of 4 x 4 patches, in training mode; what starts at zero is randomised."""
    torch.manual_seed(0)
    seen = tower(wrap(MODELS[vision](), vision), adapted)
    own = language(family)
    if half:
        own.model.bfloat16()
    adapt.apply(own, method or {"name": "frozen"})
    made = VLM(seen, build(connector, vision_shape(seen), own.shape), own, checkpointing)
    generator = torch.Generator().manual_seed(3)
    for named in made.components().values():
        for _, parameter in named:
            if not parameter.any():
                parameter.data.normal_(std=0.3, generator=generator)
    return made.train()


def stored(folder: Path, family: str = "llama", seed: int = 0) -> str:
    """A folder with a language model of a family and its tokenizer; its name for `mllm.language.load`."""
    model(family, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return f"hf:{folder}"
