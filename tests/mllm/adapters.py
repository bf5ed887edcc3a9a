"""Adapters of tiny multimodal models, as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mllm import adapt, connectors
from mllm import language as languages
from mllm.adapter import save_adapter
from mllm.templates import find
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from tests.mllm.models import MLP, stored
from vpeft.backbones import create

PREPARATION: dict[str, Any] = {
    "image_size": [64, 64],
    "aspect": "pad",
    "interpolation": "bilinear",
    "fill": [127, 102, 76],
    "template": "bare",
    "template_fields": vars(find("bare")),
    "system": None,
    "question": "{}",
    "max_length": 100,
    "packed": False,
}
NORMALIZATION = {"name": "auto", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def built(
    name: str,
    connector: dict[str, Any] = MLP,
    method: dict[str, Any] | None = None,
    vision: Any = None,
    backbone: str = "test_vit",
    seed: int = 1,
    dtype: str = "float32",
    **reads: Any,
) -> tuple[VLM, dict[str, Any]]:
    """A model that has learned something, and the manifest of its adapter.

    Args:
        name: Of the language model.
        reads: layer, prefix, norm of the tower.
    """
    method, vision = method or {"name": "frozen"}, vision or {"name": "linear"}
    seen = create(backbone, "none", 64, seed)
    seen.normalization = (tuple(NORMALIZATION["mean"]), tuple(NORMALIZATION["std"]))  # type: ignore[arg-type]
    reading = {"layer": -2, "prefix": False, "norm": False} | reads
    tuned = tower(seen, vision, **reading)
    own = languages.load(name, "auto", dtype)
    adapt.apply(own, method)
    torch.manual_seed(seed)
    model = VLM(tuned, connectors.build(connector, vision_shape(tuned), own.shape), own).eval()
    generator = torch.Generator().manual_seed(2)
    for named in model.components().values():
        for _, parameter in named:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, {
        "kind": "mllm",
        "seed": seed,
        "backbone": {
            "name": backbone,
            "pretrained": "none",
            "image_size": [64, 64],
            **reading,
            "normalization": NORMALIZATION,
        },
        "method": vision,
        "connector": connectors.resolve(connector),
        "language": {"name": name, "pretrained": "auto", "dtype": dtype},
        "language_method": adapt.resolve(method),
        "preparation": PREPARATION,
        "task": "talks",
        "parameters": {"vision": 0, "connector": 1, "language": 0, "embeddings": 0, "frozen": 2, "total": 3},
        "result": {"id": "run1"},
    }


def saved(folder: Path, *options: Any, family: str = "llama", **named: Any) -> Path:
    """An adapter in a folder, with its language model beside it; arguments as of `built`, but for the name."""
    name = stored(folder / "language", family)
    model, manifest = built(name, *options, **named)
    path = folder / "adapter.safetensors"
    save_adapter(path, model, manifest)
    return path
