"""Decode heads: maps of a neck -> logits, `(channels, classes, **options)`, one entry each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vpeft.heads.fcn import FCNHead
from vpeft.heads.linear_bn import LinearBNHead
from vpeft.heads.mask import MaskHead
from vpeft.heads.setr import SETRHead
from vpeft.heads.uper import UPerHead

DENSE_HEADS: dict[str, type[nn.Module]] = {
    "fcn": FCNHead,
    "linear_bn": LinearBNHead,
    "mask": MaskHead,
    "setr": SETRHead,
    "uper": UPerHead,
}


@runtime_checkable
class Pooling(Protocol):
    """A head that may pool a map to one cell, of which a BatchNorm has no statistics in a batch of one image."""

    pools_to_a_cell: bool


@runtime_checkable
class OwnLoss(Protocol):
    """A head that is not trained by a cross-entropy of its logits."""

    def loss(self, maps: Sequence[Tensor], mask: Tensor, ignored: int = 255) -> Tensor:
        """The loss, a scalar.

        Args:
            maps: [B C h w] each, finest first.
            mask: Class of every pixel [B H W].
            ignored: Value of `mask` that is no class.
        """
        ...
