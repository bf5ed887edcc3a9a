"""Partial-k: the last k blocks and the last norm learn (Yosinski et al., NeurIPS 2014; VPT's baseline)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Partial(nn.Module):
    """k blocks in place; k (12 d^2 + 13 d) + 2 d on a ViT: 7,089,408 for k = 1 on ViT-B/16.

    Args:
        blocks: k, counted from the last block.

    Raises:
        ValueError: more blocks than there are, or none.
    """

    def __init__(self, backbone: Backbone, blocks: int = 1) -> None:
        super().__init__()
        if not 1 <= blocks <= len(backbone.blocks):
            last = len(backbone.blocks)
            raise ValueError(
                f"partial: blocks is {blocks}; {backbone.name} has {last} blocks, so 1 to {last} are possible."
            )
        self.count = blocks

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def adopts(self, backbone: Backbone) -> list[str]:
        modules = [block.module for block in backbone.blocks[-self.count :]] + [backbone.family.norm]
        learned = {parameter for module in modules for parameter in module.parameters()}
        found = [name for name, parameter in backbone.model.named_parameters() if parameter in learned]
        return [name for name in found if name not in backbone.family.unused]

    def merge(self, backbone: Backbone) -> None:
        """The change is in the backbone already."""
