"""Runs that take two seconds: a random tiny ViT on coloured noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpeft.config import Config, DataConfig, OptimConfig, TrainConfig

COLORS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}
DROPOUT = [{"name": "lora", "rank": 2, "dropout": 0.3}, {"name": "vpt", "prompts": 2, "dropout": 0.2}]


def write_images(root: Path, count: int = 25) -> Path:
    """A folder of `count` images of each of three classes, hard enough that no model is always right."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.normal(0, 200, (4, 4, 3)) + color
            pixels = noise.clip(0, 255).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


# Adam divides a gradient by its size: one that rounding alone keeps from zero becomes a whole step, so runs that add
# the same numbers in another order part. Steps of SGD stay as near as the gradients, and see a wrong factor.
SGD = OptimConfig(name="sgd", lr=0.005, warmup_epochs=0.5)


def tiny_config(root: Path, output: Path, method: Any = None, optim: OptimConfig | None = None, **train: Any) -> Config:
    """60 images less 12 of val in batches of 8: 6 steps an epoch."""
    return Config(
        method=method or {"name": "lora", "rank": 2},
        backbone="test_vit.r160_in1k",
        pretrained="none",
        image_size=32,
        data=DataConfig(task="colors", root=root, format="folder", split="train800", batch_size=8, eval_batch_size=7),
        optim=optim or OptimConfig(lr=0.02, warmup_epochs=0.5),
        train=TrainConfig(**{"epochs": 3, "accelerator": "cpu", **train}),
        output=output,
        name="run",
    )
