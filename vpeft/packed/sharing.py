"""One copy for several runs of what is the same in all of them: frozen weights, and decoded images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from vpeft.backbones import Backbone
from vpeft.data import ClassificationData
from vpeft.tuned import Tuned


def twin(backbone: Backbone) -> Backbone:
    """The same backbone as modules of their own, with hooks of their own, around the same tensors."""
    tensors = (*backbone.parameters(), *backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def own_adopted(tuned: Tuned) -> None:
    """Give a model on a twin for itself what it trains of the backbone; the rest stays shared."""
    for name in tuned.adopted:
        path, _, leaf = name.rpartition(".")
        owner = tuned.backbone.model.get_submodule(path)
        shared = owner.get_parameter(leaf)
        setattr(owner, leaf, nn.Parameter(shared.detach().clone()))
        shared.requires_grad_(False)


def share_images(modules: Sequence[ClassificationData]) -> None:
    """Let modules that read the same files in the same way decode them once."""
    likes: list[ClassificationData] = []
    for module in modules:
        likes.append(next((like for like in likes if _reading(like) == _reading(module)), module))
    for module, like in zip(modules, likes, strict=True):
        module.share(like, len({id(one) for one in likes}))


def _reading(module: ClassificationData) -> tuple[Any, ...]:
    free = {"batch_size": 1, "eval_batch_size": 1, "workers": 0, "drop_last": False}
    return (
        dataclasses.replace(module.config, **free),
        module.image_size,
        module.interpolation,
        module.tested,
    )
