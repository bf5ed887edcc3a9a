"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv:2205.13535).

    x + mlp(norm(x)) + s * up(relu(down(x)))

A bottleneck beside the MLP. It reads the residual stream before the norm, and starts as zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class AdaptFormer(nn.Module):
    """Bottlenecks beside every MLP; L (2 d r + r + d) parameters: 1,189,632 for r = 64 on ViT-B/16.

    Where paper and official code (ShoufaChen/AdaptFormer @ 6967d67, MIT) differ, the code is followed,
    as its authors say: the input is x, not norm(x) (paper, Eq. 3), unless `pre_norm`. Their 64-wide
    setting goes with a BatchNorm head; every published VTAB "AdaptFormer" row is 8 wide with a plain
    head and a scale tuned per task (configs/vtab/adaptformer_vtab8.yaml).

    Args:
        bottleneck: r; 64 in the official code.
        scale: s, fixed; 0.1 in the official code.
        dropout: Before `up`; 0.1 in the official code.
        pre_norm: Read norm(x) as the paper's equation does.

    Raises:
        ValueError: a bottleneck below 1; a scale of 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"adaptformer: bottleneck is {bottleneck}; at least 1 is needed.")
        if scale == 0:
            raise ValueError(f"adaptformer: scale is {scale}; anything but 0 is needed, or nothing learns.")
        self.adapters = Modules[Adapter](
            Adapter(block.dim, bottleneck, scale, dropout, pre_norm) for block in backbone.blocks
        )

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.adapters, strict=True):
            block.mlp.edit(adapter)


class Adapter(nn.Module):
    def __init__(self, dim: int, bottleneck: int, scale: float, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.dropout = nn.Dropout(dropout)
        self.scale, self.pre_norm = scale, pre_norm
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        z = self.dropout(self.down(h if self.pre_norm else x).relu())
        return y + self.scale * self.up(z).reshape(y.shape)
