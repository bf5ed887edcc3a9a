"""Trained-looking adapters on a tiny random ViT of timm, which `load_adapter` can rebuild by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.zoo import shake
from vpeft.backbones import create
from vpeft.checkpoint import save_adapter
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tuned import Tuned

NAME = "test_vit"
LORA = {"name": "lora", "rank": 2}


def make(
    method: Any = LORA,
    classes: tuple[str, ...] = ("blue", "green", "red"),
    backbone: str = NAME,
    pretrained: str = "none",
    batch_norm: bool = False,
    seed: int = 0,
) -> tuple[Tuned, dict[str, Any]]:
    """A model for 32-pixel images with every trained value away from its start, and its manifest."""
    body = create(backbone, pretrained, 32, seed)
    head = LinearHead(body.dim, len(classes), batch_norm=batch_norm)
    tuned = shake(Tuned(body, build(method, body), head)).eval()
    manifest = {
        "backbone": {"name": backbone, "pretrained": pretrained, "image_size": [32, 32], "seed": seed},
        "method": [] if method == {"name": "linear"} else [method] if isinstance(method, dict) else method,
        "head": {"init": "trunc_normal", "batch_norm": batch_norm},
        "drop_path": 0.0,
        "classes": list(classes),
        "normalization": {"name": "inception", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "resize": "squash",
        "interpolation": "bicubic",
        "task": "colors",
        "parameters": {"method": 1, "head": 2, "adopted": 0},
        "result": {"test_accuracy": 0.5},
    }
    return tuned, manifest


def save(path: Path, **options: Any) -> Tuned:
    tuned, manifest = make(**options)
    save_adapter(path, tuned, manifest)
    return tuned


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
