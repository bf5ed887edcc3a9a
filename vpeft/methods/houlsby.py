"""Houlsby adapters (Houlsby et al., ICML 2019, arXiv:1902.00751).

    x + y + A(y)        y = attn(norm(x)), and again y = mlp(norm(x))
    A(y) = up(gelu(down(y)))

Two bottlenecks a block: each reads what a branch is about to add, and is added with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vpeft.methods.bottleneck import Bottleneck, check
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Houlsby(nn.Module):
    """Bottlenecks after attention and after MLP; 2 L (2 d r + r + d) parameters: 313,536 for r = 8 on ViT-B/16.

    The original, google-research/adapter-bert @ 1a31fc6 (Apache-2.0), trains the LayerNorms too:
    `method: [{name: houlsby}, {name: layernorm}]`, 351,936 parameters. Paper and code differ in the start: a
    deviation of 0.01 in the paper, 0.001 in the code, cut at two deviations. visinf/adapter_plus @ 191c4ab
    (Apache-2.0) takes the paper's and its own drop path of 0.1; this is its position `houlsby`.

    Differs: BERT's norm follows the residual, a ViT's stands before the branch; the adapter stays before the
    residual. Starts near the backbone, not as it.

    Args:
        bottleneck: r; 8 in the VTAB runs of Adapter+, 64 in the original code.
        init_std: Of both matrices; 0.01 in the paper.
        drop_path: Of A for whole images while training; 0 in the original, 0.1 in Adapter+.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, backbone: Backbone, bottleneck: int = 8, init_std: float = 0.01, drop_path: float = 0.0) -> None:
        super().__init__()
        check("houlsby", bottleneck, init_std, drop_path)
        self.attn, self.mlp = (
            Modules[Adapter](Adapter(block.dim, bottleneck, init_std, drop_path) for block in backbone.blocks)
            for _ in range(2)
        )

    def attach(self, backbone: Backbone) -> None:
        for block, attn, mlp in zip(backbone.blocks, self.attn, self.mlp, strict=True):
            block.attn.edit(attn)
            block.mlp.edit(mlp)


class Adapter(nn.Module):
    def __init__(self, dim: int, bottleneck: int, init_std: float, drop_path: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(dim, bottleneck, "gelu", drop_path=drop_path).init_normal(init_std)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return y + self.bottleneck(y)
