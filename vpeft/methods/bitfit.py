"""BitFit (Ben Zaken, Ravfogel & Goldberg, ACL 2022, arXiv:2106.10199).

    W x + b        b learns, W does not

Every bias of the backbone: of the patch embedding, the norms, attention and MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class BitFit(nn.Module):
    """Biases in place; 1 + 11 L + 1 vectors of width d on a ViT: 102,912 on ViT-B/16.

    A bias is what torch calls one: a parameter named `bias`, or the `in_proj_bias`, `q_bias` and
    `v_bias` of attentions that keep them apart. The official code,
    benzakenelad/BitFit @ 7ead19a (MIT), is for BERT and can also train some of the biases only; the places here are
    those of "Bias" in KMnP/vpt @ 4410440 (CC-BY-NC-4.0).

    Args:
        position_tables: The tables of relative positions in Swin's attention learn too, as in Leiyi-Hu/mona @ 5deeac9
            (Apache-2.0), which trains whatever has `bias` in its name: 299,604 parameters on Swin-L, 204,288 without.

    Raises:
        ValueError: `position_tables` on a backbone that has none.
    """

    def __init__(self, backbone: Backbone, position_tables: bool = False) -> None:
        super().__init__()
        self.tables = [n for n, _ in backbone.model.named_parameters() if n.endswith("relative_position_bias_table")]
        if position_tables and not self.tables:
            raise ValueError(
                f"bitfit: position_tables is true, but {backbone.name} has no relative position tables. Leave it out."
            )
        if not position_tables:
            self.tables = []

    def attach(self, backbone: Backbone) -> None:
        """Nothing to wire."""

    def adopts(self, backbone: Backbone) -> list[str]:
        last = {name: name.rpartition(".")[2] for name, _ in backbone.model.named_parameters()}
        biases = [name for name, leaf in last.items() if leaf == "bias" or leaf.endswith("_bias")]
        return [name for name in biases if name not in backbone.family.unused] + self.tables

    def merge(self, backbone: Backbone) -> None:
        """The change is in the backbone already."""
