"""A data set of noise, and the configuration of a run on it: what whole runs are timed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpeft import methods
from vpeft.config import Config, DataConfig, OptimConfig, TrainConfig

CLASSES = 4


def write_images(root: Path, count: int) -> None:
    """`count` images to train on, or a few more, and a test of a fifth of all."""
    random, each = np.random.default_rng(0), -(-count * 5 // (4 * CLASSES)) + 1
    for name in range(CLASSES):
        (root / str(name)).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(root / str(name) / f"{i}.png")


def config(images: Path, output: Path, name: str, batch: int, epochs: int, **settings: Any) -> Config:
    """Of a run on a CPU that is whole: training, validation, test, files.

    Args:
        images: Of `write_images`.
        output: Folder of runs.
        name: Of the run.
        batch: Images a step.
        epochs: Of the run.
        settings: Further fields of the configuration; `lr` is the optimiser's.
    """
    lr: Mapping[str, Any] = {"lr": settings.pop("lr", 1e-3)}
    made = Config(
        data=DataConfig("noise", images, "folder", batch_size=batch, drop_last=True),
        optim=OptimConfig(warmup_epochs=0.5, **lr),
        train=TrainConfig(epochs, accelerator="cpu"),
        output=output,
        name=name,
        **settings,
    )
    return dataclasses.replace(made, method=methods.resolve(made.method))
