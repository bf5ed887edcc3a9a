"""Runs of two seconds that can be packed: two tasks of other sizes and classes, one file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.runs import SGD, tiny_config, write_images
from vpeft.config import Config

BACKBONE = "test_vit.r160_in1k"
# 48 and 54 images in batches of 8: 6 batches of 8, and 6 of 8 and one of 6.
TASKS = {"colors": 3, "shades": 2}


def prepare(root: Path) -> Path:
    """Both tasks, and weights for the backbone."""
    write_images(root / "colors")
    rng = np.random.default_rng(1)
    for name, level in {"dark": 90, "light": 150}.items():
        (root / "shades" / name).mkdir(parents=True)
        for i in range(42):
            pixels = rng.normal(level, 150, (4, 4, 3)).clip(0, 255).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(root / "shades" / name / f"{i}.png")
    torch.manual_seed(0)
    state = timm.create_model(BACKBONE, pretrained=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, root / "weights.safetensors")
    return root


def member(root: Path, output: Path, method: Any, task: str, seed: int, lr: float, **train: Any) -> Config:
    """A run with everything that draws at random: dropout is the method's own."""
    config = tiny_config(root / task, output, method, SGD, **train)
    config.optim = type(SGD)(**{**vars(SGD), "lr": lr})
    config.pretrained, config.seed, config.name = str(root / "weights.safetensors"), seed, f"{task}-{seed}"
    config.drop_path, config.data.augment, config.data.task = 0.2, "flip", task
    return config


def three(root: Path, output: Path, method: Any, **train: Any) -> list[Config]:
    """Two tasks, three seeds, three learning rates."""
    return [
        member(root, output, method, "colors", 0, 0.005, **train),
        member(root, output, method, "shades", 1, 0.01, **train),
        member(root, output, method, "colors", 2, 0.02, **train),
    ]


def weights(row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(row["folder"]) / "adapter.safetensors")


def assert_same_run(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Weights and measures, to 1e-5."""
    ours, theirs = weights(found), weights(expected)
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert_close(found["test"], expected["test"])
    assert_close(found["val"], expected["val"])
    assert_close(found["selection"], expected["selection"])
    same = ("task", "method", "backbone", "head", "preprocessing", "optim", "epochs", "seed", "parameters")
    one, other = ({key: row[key] for key in same} for row in (found, expected))
    assert json.loads(json.dumps(one)) == json.loads(json.dumps(other))  # a row that was read has lists for tuples


def assert_close(found: Any, expected: Any) -> None:
    """Numbers to 1e-5, all else equal."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, float):
        assert abs(found - expected) < 1e-5, (found, expected)
    else:
        assert found == expected


def rows(outcomes: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The outcomes of a pack in which no member failed."""
    assert all(isinstance(outcome, Mapping) for outcome in outcomes), outcomes
    return list(outcomes)
