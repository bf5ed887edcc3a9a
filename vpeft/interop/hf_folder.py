"""A merged tower as a folder of transformers: config.json, model.safetensors and preprocessor_config.json.

A ViT or DINOv2 with a linear head becomes ViTForImageClassification or Dinov2ForImageClassification. The latter reads
the class token and the mean of the patches: the head gets zeros for the mean. `AutoModel` finds the tower in either.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vpeft.tuned import Tuned

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def save(folder: Path, tuned: Tuned, state: dict[str, Tensor], manifest: Mapping[str, Any]) -> tuple[str, bool]:
    """Write the model.

    Args:
        folder: An empty one.
        tuned: Of the adapter.
        state: Of the merged tower.
        manifest: Of the adapter.

    Returns:
        Its class, and whether the head is in it.
    """
    tower: Any = tuned.backbone.model
    config = copy.deepcopy(tower.config)
    kind = _classifier(config.model_type) if set(tuned.head.state_dict()) == {"linear.weight", "linear.bias"} else None
    if kind is None:
        model = type(tower)(config, **({"add_pooling_layer": False} if config.model_type == "vit" else {}))
    else:
        config.id2label = dict(enumerate(manifest["classes"]))
        config.label2id = {name: index for index, name in config.id2label.items()}
        model = kind(config)
        head = tuned.head.state_dict()
        more = model.classifier.in_features - head["linear.weight"].shape[1]
        state = {f"{model.base_model_prefix}.{key}": tensor for key, tensor in state.items()}
        state["classifier.weight"] = F.pad(head["linear.weight"], (0, more))
        state["classifier.bias"] = head["linear.bias"]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    _processor(tuned.backbone.image_size[0], manifest).save_pretrained(folder)
    return type(model).__name__, kind is not None


def _classifier(model_type: str) -> Any:
    """The class whose head reads the class token first; None where there is none."""
    from transformers import (
        Dinov2ForImageClassification,
        Dinov2WithRegistersForImageClassification,
        ViTForImageClassification,
    )

    kinds: dict[str, Any] = {
        "vit": ViTForImageClassification,
        "dinov2": Dinov2ForImageClassification,
        "dinov2_with_registers": Dinov2WithRegistersForImageClassification,
    }
    return kinds.get(model_type)


def _processor(side: int, manifest: Mapping[str, Any]) -> Any:
    from transformers import CLIPImageProcessor

    prepared = manifest["normalization"]
    square = {"height": side, "width": side}
    crop = manifest["resize"] == "crop"
    return CLIPImageProcessor(
        size={"shortest_edge": side} if crop else square,
        do_center_crop=crop,
        crop_size=square,
        resample=_RESAMPLE[manifest["interpolation"]],  # type: ignore[arg-type]
        image_mean=list(prepared["mean"]),
        image_std=list(prepared["std"]),
    )
