"""A merged model as timm's own, head and all."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from vpeft.backbones import Backbone
from vpeft.backbones.backbone import PAD_FIRST
from vpeft.backbones.embedded import EMBEDDED
from vpeft.tuned import Tuned, plain_state_dict


def classifier(tuned: Tuned, classes: int) -> str | None:
    """What timm calls the classifier of the model that backbone and head together are; None where they are none."""
    name = tuned.backbone.name
    other = ":" in name.removeprefix("timm:") or name.endswith(PAD_FIRST)  # whose blocks are not timm's
    if other or set(tuned.head.state_dict()) != {"linear.weight", "linear.bias"}:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(architecture(name), num_classes=classes, img_size=tuned.backbone.image_size)
    found = model.pretrained_cfg["classifier"]
    whole = plain_state_dict(tuned.backbone.model) | under(found, tuned)
    shapes = {key: tensor.shape for key, tensor in whole.items()}
    return found if shapes == {key: tensor.shape for key, tensor in model.state_dict().items()} else None


def under(classifier: str, tuned: Tuned) -> dict[str, Tensor]:
    """The tensors of a linear head under the name of a classifier."""
    return {key.replace("linear", classifier, 1): tensor for key, tensor in tuned.head.state_dict().items()}


def architecture(name: str) -> str:
    """What timm calls a backbone."""
    name = name.removeprefix("timm:")
    return EMBEDDED[name].architecture if name in EMBEDDED else name


def made(backbone: Backbone, classes: int) -> str:
    """The call that makes timm's model with a classifier."""
    name = architecture(backbone.name)
    return f"timm.create_model('{name}', num_classes={classes}, img_size={backbone.image_size})"
