"""Necks: from a backbone and images to maps that a decode head reads; one entry each.

A neck is an `nn.Module`, built from a backbone and its own options before the methods are, which owns what it learns.
One that trains parameters of the backbone names them in `adopts` (`vpeft.methods.Selective`), an empty list if none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from vpeft.dense.layers import Last, Layers
from vpeft.dense.stages import Stages
from vpeft.dense.vit_adapter import ViTAdapter

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

NECKS: dict[str, type[nn.Module]] = {
    "last": Last,
    "layers": Layers,
    "stages": Stages,
    "vit_adapter": ViTAdapter,
}


class Neck(Protocol):
    """What every entry of NECKS is, besides an nn.Module.

    It runs the backbone itself, through `embed`, `between` and `blocks`, so that methods act in it.
    """

    channels: list[int]  # of each map
    strides: list[int]  # pixels to a cell, of each map

    def __call__(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Normalised images [B 3 H W] -> maps [B C h w], finest first."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...
