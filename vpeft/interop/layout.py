"""What a key map states of the files of one official repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vpeft.backbones import Backbone

Tensors = Mapping[str, Tensor]
Names = dict[str, tuple[str, ...]]  # ours -> theirs, which are put together along the first axis

PLAIN_HEAD = {"linear.weight": "head.weight", "linear.bias": "head.bias"}
SWIN_HEAD = {"linear.weight": "head.fc.weight", "linear.bias": "head.fc.bias"}


def timm_name(name: str) -> tuple[str, ...]:
    """A tensor of timm's ViTs and Swins in files of code that began as timm's: Swin merged at the end of a stage."""
    if found := re.match(r"layers\.(\d+)\.(downsample\..*)", name):
        return (f"layers.{int(found[1]) - 1}.{found[2]}",)
    return (name,)


def _unchanged(name: str) -> str:
    return name


@dataclass(frozen=True)
class Layout:
    """Names and habits of one official repository.

    Args:
        repository: Its name and the commit that was read.
        marks: Pattern of every name that belongs to the method or that changes what the model computes: one that is not
            used means that the file holds another model.
        options: Options of the method, from the shapes in a file.
        names: Where every tensor of the method is, for a backbone and the options.
        backbone: Where a tensor of timm's model is, if it is in the file.
        heads: Names of the classifier, ours to theirs; the first whose weight is there is taken.
        needed: Options that no file holds and that no default can stand for, and where they are found.
        normalization: Of the images in the official runs; `auto` is the backbone's own.
        resize: How they were resized.
        interpolation: How they were resampled; `auto` is the backbone's own.
        plain: A name in a file without the prefixes of what was around the model.
    """

    repository: str
    marks: str
    options: Callable[[Tensors, Backbone], dict[str, Any]]
    names: Callable[[Backbone, Mapping[str, Any]], Names]
    backbone: Callable[[str], tuple[str, ...]] = timm_name
    heads: Sequence[Mapping[str, str]] = (PLAIN_HEAD, SWIN_HEAD)
    needed: Mapping[str, str] | None = None
    normalization: str = "imagenet"
    resize: str = "squash"
    interpolation: str = "bicubic"
    plain: Callable[[str], str] = _unchanged


def shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Of a tensor that the options are read from.

    Raises:
        ValueError: It is not in the file.
    """
    if name not in tensors:
        some = ", ".join(sorted(tensors)[:3])
        raise ValueError(
            f"lacks {name}, and holds {some}, ...: it is not a file of this method. Give the kind that it is of"
        )
    return tuple(tensors[name].shape)


def places(backbone: Backbone) -> list[str]:
    """What timm calls the blocks: blocks.0, or layers.0.blocks.0 in a Swin."""
    if not backbone.windowed:
        return [f"blocks.{i}" for i in range(len(backbone.blocks))]
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return [names[id(block.module)] for block in backbone.blocks]
