"""LoRand (Yin et al., CVPR 2023, pages 20116-20126).

    x + A(y)        y = attn(norm(x)), and again y = mlp(norm(x))
    A(y) = y + U(gelu(D(y)))
    D(z) = W z + b,  W^T = sum_i P_i K_i Q_i,  i = 1 ... a        U likewise

Two bottlenecks a block, each on what a branch is about to add. Their matrices are sums of a products of rank k, so that
a wide bottleneck is cheap.

Shapes: A products, K kernel, I in, O out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LoRand(nn.Module):
    """Synthesised bottlenecks after attention and MLP; 2 L (2 a (k (d + r) + k^2) + d + r) parameters, r = d / factor:
    1,809,408 on ViT-B/16, 2,370,816 on Swin-B.

    With `shared_kernel` there are 2 L a k^2 fewer. The defaults are those of the code of LoRand's first author,
    DongshuoYin/CoLin @ 332da5c (Apache-2.0): a = 4, and D and U have a K each. In the paper D and U of an adapter share
    one, and a is 2; LoRand+ and LoRand++ are said to have 4 and 8. `branches: 2, shared_kernel: true` has 440,256
    parameters on Swin-T, 899,520 on S, 1,197,312 on B and 1,792,896 on L, where tables print 1.31 M.

    Differs: written for Swin; on a ViT prefix tokens pass the adapter like any others. W is not formed, since two
    products of rank a k are cheaper.

    Args:
        branches: a, the products in a sum; 4 in the code.
        kernel: k; 8 in the code.
        factor: d / r; 2 in the code.
        shared_kernel: D and U of an adapter share K, as in the paper; not in the code.
        zero_init: U starts as zero, so that all starts as the backbone; not in the code.

    Raises:
        ValueError: a size below 1, or a factor that leaves nothing of the width.
    """

    def __init__(
        self,
        backbone: Backbone,
        branches: int = 4,
        kernel: int = 8,
        factor: int = 2,
        shared_kernel: bool = False,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        narrow = min(block.dim for block in backbone.blocks)
        if branches < 1 or kernel < 1:
            raise ValueError(f"lorand: branches is {branches} and kernel {kernel}; at least 1 of each is needed.")
        if not 1 <= factor <= narrow:
            raise ValueError(f"lorand: factor is {factor}; 1 to {narrow}, the width of {backbone.name}, is needed.")
        self.attn, self.mlp = (
            Modules[Adapter](
                Adapter(block.dim, block.dim // factor, branches, kernel, shared_kernel, zero_init)
                for block in backbone.blocks
            )
            for _ in range(2)
        )

    def attach(self, backbone: Backbone) -> None:
        for block, attn, mlp in zip(backbone.blocks, self.attn, self.mlp, strict=True):
            block.attn.edit(attn)
            block.mlp.edit(mlp)


class Adapter(nn.Module):
    def __init__(self, dim: int, size: int, branches: int, kernel: int, shared: bool, zero_init: bool) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.empty(1 if shared else 2, branches, kernel, kernel))
        self.down = Synthesised(dim, size, branches, kernel)
        self.up = Synthesised(size, dim, branches, kernel)
        # Kaiming's uniform distribution for a = sqrt(5), whose fan-in is that of the stored matrix: its columns.
        nn.init.uniform_(self.k, -(kernel**-0.5), kernel**-0.5)
        if zero_init:
            nn.init.zeros_(self.up.q)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return y + self.up(F.gelu(self.down(y, self.k[0])), self.k[-1])


class Synthesised(nn.Module):
    """A linear map of which only factors are stored; K is handed to it."""

    def __init__(self, inputs: int, outputs: int, branches: int, kernel: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.empty(branches, inputs, kernel))
        self.q = nn.Parameter(torch.empty(branches, kernel, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        for tensor, fan in ((self.p, kernel), (self.q, outputs), (self.bias, inputs)):
            nn.init.uniform_(tensor, -(fan**-0.5), fan**-0.5)

    def forward(self, z: Tensor, k: Tensor) -> Tensor:
        pk = (self.p @ k).transpose(0, 1).flatten(1)  # I A*K
        return F.linear(z @ pk, self.q.flatten(0, 1).T, self.bias)
