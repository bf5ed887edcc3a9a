"""Linear probe: only the head learns.

Its features never change, so the backbone runs without any gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Linear(nn.Module):
    """Nothing beside the head; 0 parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def frozen(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """The features [B C]."""
        return (backbone.look(images),)

    def features(self, features: Tensor) -> Tensor:
        return features

    def merge(self, backbone: Backbone) -> None:
        """The backbone is unchanged."""
