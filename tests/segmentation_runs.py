"""A small segmentation run that tests change in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.data.masked_layouts import write_folder

TEXT = """
kind: segmentation
method: {method}
neck: {neck}
head: {head}
auxiliary: {auxiliary}
backbone: {backbone}
pretrained: none
image_size: 64
data: {{task: own, root: {root}, split: train, batch_size: 4, short_side: 64, drop_last: false}}
optim: {{lr: 1e-2, warmup_epochs: 0.5, schedule: poly, power: 0.9}}
train: {{epochs: 3, accelerator: cpu, selection: best_val}}
output: {output}
name: run
"""
PLAIN = {
    "method": "{name: lora, rank: 2}",
    "neck": "{name: last}",
    "head": "{name: linear_bn}",
    "auxiliary": "{name: fcn, width: 8, index: 0}",
    "backbone": "test_vit.r160_in1k",
}


def own_data(folder: Path) -> Path:
    """Ten images to train on, three of val and three of test, of two sizes."""
    return write_folder(folder / "own", {"train": 10, "val": 3, "test": 3}, ((64, 80), (72, 64)))


def writer(folder: Path, root: Path) -> Callable[..., str]:
    """What writes a configuration into `folder`, sections of PLAIN given anew, and returns its path."""

    def make(name: str = "config.yaml", output: str = "runs", **options: str) -> str:
        file = folder / name
        file.write_text(TEXT.format(**PLAIN | options, root=root, output=folder / output))
        return str(file)

    return make
