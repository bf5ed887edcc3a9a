"""DiffFit (Xie et al., ICCV 2023, arXiv:2304.06648).

    x + gamma * y        y: what an attention or an MLP adds; every bias and every norm learn too

Made for diffusion transformers. The scales merge into the rows of proj and fc2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpeft.methods.bitfit import BitFit
from vpeft.methods.layernorm import LayerNormTuning
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class DiffFit(nn.Module):
    """A scale of every branch, and biases and norms in place; d (11 L + 3) + L h parameters, h the MLP's width:
    140,544 on ViT-B/16.

    There is no official code for classifiers. What is trained, and scales of width d that start as ones, are those
    of OSU-MLB/ViT_PEFT_Vision @ cea7e21 (no licence). All blocks have scales, as there.

    Differs: nothing known from that list; what belongs to diffusion in the paper's is not here. LayerScale is no norm
    and stays frozen.
    """

    merges_last = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.selected = BitFit(backbone), LayerNormTuning(backbone)
        self.attn = Modules[Gamma](Gamma(block.dim) for block in backbone.blocks)
        self.mlp = Modules[Gamma](Gamma(block.dim) for block in backbone.blocks)

    def attach(self, backbone: Backbone) -> None:
        for block, attn, mlp in zip(backbone.blocks, self.attn, self.mlp, strict=True):
            block.attn.edit(attn)
            block.mlp.edit(mlp)

    def adopts(self, backbone: Backbone) -> list[str]:
        return list(dict.fromkeys(name for method in self.selected for name in method.adopts(backbone)))

    def merge(self, backbone: Backbone) -> None:
        # A LayerScale between the map and the scale is diagonal too, so the order does not matter.
        for block, attn, mlp in zip(backbone.blocks, self.attn, self.mlp, strict=True):
            block.affines["proj"].merge(attn)
            block.affines["fc2"].merge(mlp)


class Gamma(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return self.gamma.to(y.dtype) * y

    def weight(self, w: Tensor) -> Tensor:
        return self.gamma[:, None] * w

    def bias(self, b: Tensor) -> Tensor:
        return self.gamma * b
