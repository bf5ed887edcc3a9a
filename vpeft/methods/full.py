"""Full fine-tuning: every parameter of the backbone learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Full(nn.Module):
    """All parameters that the features depend on; 85,798,656 on ViT-B/16.

    The backbone's own dropout stays off (VPT's full fine-tuning kept 0.1 of it active); stochastic
    depth is the run's `drop_path`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def adopts(self, backbone: Backbone) -> list[str]:
        return [name for name, _ in backbone.model.named_parameters() if name not in backbone.family.unused]

    def merge(self, backbone: Backbone) -> None:
        """The change is in the backbone already."""
