"""LayerNorm tuning (Basu et al., AAAI 2024, arXiv:2304.01589; Kim et al., 2021, arXiv:2106.03164).

    gamma (x - mean) / std + beta        gamma and beta learn

Every norm of the backbone, in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LayerNormTuning(nn.Module):
    """Weights and biases of every norm, in place; 2 d (2 L + 1) on a ViT: 38,400 on ViT-B/16."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def adopts(self, backbone: Backbone) -> list[str]:
        from timm.layers.norm import RmsNorm, SimpleNorm

        kinds = (nn.LayerNorm, nn.RMSNorm, RmsNorm, SimpleNorm)
        norms = {name for name, module in backbone.model.named_modules() if isinstance(module, kinds)}
        found = [name for name, _ in backbone.model.named_parameters() if name.rpartition(".")[0] in norms]
        return [name for name in found if name not in backbone.family.unused]

    def merge(self, backbone: Backbone) -> None:
        """The change is in the backbone already."""
