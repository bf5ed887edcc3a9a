"""Pfeiffer adapters (Pfeiffer et al., EACL 2021, arXiv:2005.00247).

    x + y + A(y)               y = mlp(norm(x))
    x + y + A(norm'(x + y))    with `reads: stream` and `norm`
    A(z) = up(act(down(z)))

One bottleneck a block, after the MLP. On vision transformers it reads the MLP's output; Pfeiffer et
al. let it read the residual stream, normalised, and add what it gives before the residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from vpeft.methods.bottleneck import Activation, Bottleneck, check
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Pfeiffer(nn.Module):
    """Bottlenecks after every MLP; L (2 d r + r + d) parameters, 2 d L more with `norm`: 156,768 for r = 8 on ViT-B/16.

    The defaults are Adapter-8 of NOAH (ZhangYuanhan-AI/NOAH @ e9c55f3, MIT): QuickGELU and Xavier. In
    visinf/adapter_plus @ 191c4ab (Apache-2.0) they are the position `intermediate`, and its `pfeiffer` is
    `reads: stream, norm: true, activation: gelu, dropout: 0.0, init_std: 0.02`.

    Two published re-implementations, in KMnP/vpt @ 4410440 (CC-BY-NC-4.0) and in V-PETL Bench
    (synbol/Parameter-Efficient-Transfer-Learning-Benchmark @ c188fad), start with all four tensors at zero, so that
    only the last bias ever learns. Here both matrices start apart from zero, and `init_std: 0` is refused.

    Differs: a normal start is cut at two deviations, which adapter_plus does not do for this position. BERT's norm
    after the residual becomes `norm`, a norm of the method's own that learns, as in adapter_plus.

    Args:
        bottleneck: r; 8 in NOAH.
        activation: `quick_gelu` in NOAH, `gelu` in Adapter+.
        dropout: Before `up`; 0.1 in NOAH.
        reads: `branch` is y, `stream` is x + y.
        norm: A LayerNorm in front of the bottleneck.
        init_std: Of both matrices, normal; None is NOAH's Xavier uniform.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        bottleneck: int = 8,
        activation: Activation = "quick_gelu",
        dropout: float = 0.1,
        reads: Literal["branch", "stream"] = "branch",
        norm: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        check("pfeiffer", bottleneck, init_std)
        self.adapters = Modules[Adapter]()
        for block in backbone.blocks:
            inner = Bottleneck(block.dim, bottleneck, activation, dropout)
            inner = inner.init_xavier() if init_std is None else inner.init_normal(init_std)
            before = nn.LayerNorm(block.dim, eps=1e-6) if norm else nn.Identity()
            self.adapters.append(Adapter(inner, before, reads == "stream"))

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.adapters, strict=True):
            block.mlp.edit(adapter)


class Adapter(nn.Module):
    def __init__(self, bottleneck: Bottleneck, norm: nn.Module, stream: bool) -> None:
        super().__init__()
        self.bottleneck, self.norm, self.stream = bottleneck, norm, stream

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return y + self.bottleneck(self.norm(x + y if self.stream else y))
