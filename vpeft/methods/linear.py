"""Linear probe: only the head learns.

Its features never change, so the backbone runs without any gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Linear(nn.Module):
    """Nothing beside the head; 0 parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def merge(self, backbone: Backbone) -> None:
        """The backbone is unchanged."""
