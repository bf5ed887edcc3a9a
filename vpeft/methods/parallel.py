"""Parallel adapter (He et al., ICLR 2022, arXiv:2110.04366).

    x + mlp(h) + s A(h)        h = norm(x)
    A(h) = up(relu(down(h)))

A bottleneck beside the MLP that reads what the MLP reads, and starts as zero; beside the attention too if asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from vpeft.methods.bottleneck import Bottleneck, check
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Parallel(nn.Module):
    """Scaled bottlenecks beside every MLP; L (2 d r + r + d) parameters, twice that with `attention`: 304,320 for
    r = 16 on ViT-B/16.

    Here is how it differs from AdaptFormer, which is this idea on images: AdaptFormer reads x before the norm, this
    reads norm(x) as the MLP does; AdaptFormer's s is 0.1, this one's 2 or 4; AdaptFormer stays beside the MLP. With
    `pre_norm: false` and the same s, r and dropout the two are the same function.

    Paper and code, jxhe/unify-parameter-efficient-tuning @ 3222ce2 (Apache-2.0), agree on models whose norm follows
    the residual. On mBART, whose norm stands before the branch as in a ViT, the code reads x beside the MLP. The
    position `parallel` of visinf/adapter_plus @ 191c4ab (Apache-2.0) reads x too, through a GELU, with s = 1.

    Differs: the attention's adapter follows the paper's equation; the code adds it before the output projection,
    with a norm of its own, another start and s = 1. The code's learned s is not here.

    Args:
        bottleneck: r; 16 in the official GLUE runs, 512 for summarisation.
        scale: s, fixed; 2 in the official GLUE runs, 4 for summarisation.
        dropout: Before `up`; 0.1 in the official code, which takes the language model's.
        attention: Beside the attention too.
        pre_norm: Read norm(x); otherwise x.
        activation: `relu` in the official code, `gelu` in Adapter+.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 16,
        scale: float = 2.0,
        dropout: float = 0.1,
        attention: bool = False,
        pre_norm: bool = True,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        check("parallel", bottleneck)
        if scale == 0:
            raise ValueError(f"parallel: scale is {scale}; anything but 0 is needed, or nothing learns.")
        self.mlp, self.attn = (
            Modules[Adapter](
                Adapter(Bottleneck(block.dim, bottleneck, activation, dropout).init_zero(), scale, pre_norm)
                for block in blocks
            )
            for blocks in (backbone.blocks, backbone.blocks if attention else [])
        )

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.mlp, strict=True):
            block.mlp.edit(adapter)
        for block, adapter in zip(backbone.blocks, self.attn, strict=False):
            block.attn.edit(adapter)


class Adapter(nn.Module):
    def __init__(self, bottleneck: Bottleneck, scale: float, pre_norm: bool) -> None:
        super().__init__()
        self.bottleneck, self.scale, self.pre_norm = bottleneck, scale, pre_norm

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * self.bottleneck(h if self.pre_norm else x)
