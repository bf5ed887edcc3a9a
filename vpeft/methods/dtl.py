"""Disentangled Transfer Learning, DTL and DTL+ (Fu et al., AAAI 2024, arXiv:2312.08733).

    h_i = h_{i-1} + B_i A_i x_{i-1}                    h_0 = 0
    x_i = block_i(x_{i-1})                             i < M
    x_i = block_i(x_{i-1}) + c(h_i sigmoid(beta h_i))  i >= M
    features = norm(mean over patches of x_L)

A thin side stream h collects from every block and is added back in the upper ones, so that nothing runs backward
through the blocks below M. DTL+ has one depth-wise convolution c over the patches; in DTL c is the identity.
Shapes: B images, N tokens, C channels, H W grid, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.seams import Block


class DTL(nn.Module):
    """A side stream of rank R; 2 L d R parameters, and d k^2 with a k x k kernel: 36,864 (DTL) and 43,776 (DTL+, k = 3)
    for R = 2 on ViT-B/16.

    As in heekhero/DTL @ bf6c51e (MIT), whose paper does not mention that the patches are averaged before the last norm
    in the place of the class token: `pool: own` keeps the backbone's own features. Where the width of the backbone
    changes (Swin), h starts again at 0 and the convolution is another one.

    Differs: in Swin there is a convolution for stages that h is added in, and none for the others.

    Args:
        rank: R; 2 in the paper.
        beta: 100 in the paper.
        first: M, the first block that h is added after, counted from 0; None is the middle, 6 in the official ViT-B.
        kernel: k; 0 is DTL. DTL+ takes 3, and 2 to 5 in its scripts of single tasks.
        pool: What the head sees: `mean` over patches and then the last norm, or the backbone's `own` features.

    Raises:
        ValueError: there is no such block.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 2,
        beta: float = 100.0,
        first: int | None = None,
        kernel: int = 0,
        pool: Literal["mean", "own"] = "mean",
    ) -> None:
        super().__init__()
        blocks = backbone.blocks
        first = len(blocks) // 2 if first is None else first
        if rank < 1:
            raise ValueError(f"dtl: rank is {rank}; at least 1 is needed.")
        if beta <= 0:
            raise ValueError(f"dtl: beta is {beta}; a number above 0 is needed.")
        if not 0 <= first < len(blocks):
            raise ValueError(f"dtl: first is {first}; {backbone.name} has blocks 0 to {len(blocks) - 1}.")
        if kernel < 0:
            raise ValueError(f"dtl: kernel is {kernel}; 0 for none, or the side of a kernel such as 3.")
        self.beta, self.first, self.pool = beta, first, pool
        self.side = Modules[Side](Side(block.dim, rank) for block in blocks)
        widths = sorted({block.dim for block in blocks[first:]}) if kernel else []
        self.fusion = nn.ModuleDict(
            {str(d): nn.Conv2d(d, d, kernel, padding="same", groups=d, bias=False) for d in widths}
        )
        self.low: list[tuple[Tensor, Tensor]] = []  # A x and B of the blocks so far: h is the sum of B A x
        self.norm: tuple[nn.Module, int] | None = None  # and the number of patches

    def attach(self, backbone: Backbone) -> None:
        blocks = backbone.blocks
        for index, block in enumerate(blocks):
            starts = index == 0 or block.dim != blocks[index - 1].dim
            step = Step(self, index, block, starts, index == len(blocks) - 1)
            block.before(step.read)
            if index >= self.first:
                block.after(step.write)
        if self.pool == "mean":
            height, width = blocks[-1].grid
            self.norm = backbone.family.norm, height * width
            backbone.read_with(self.features)

    def features(self, x: Tensor) -> Tensor:
        """Tokens leaving the last block -> [B, C]."""
        assert self.norm is not None, "features are read after attach"
        norm, patches = self.norm
        return norm(x.flatten(1, -2)[:, -patches:].mean(dim=1))

    def back(self, block: Block) -> Tensor:
        """What is added after a block."""
        a, b = (torch.cat(parts, dim=-1) for parts in zip(*self.low, strict=True))
        z = gated(a, b.to(a.dtype), self.beta)
        if str(block.dim) not in self.fusion:
            return z
        prefix, patches = block.split(z)  # B P C, B H W C
        fused = self.fusion[str(block.dim)](patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return block.join(prefix.to(fused.dtype), fused, like=z)


class Side(nn.Module):
    """B A, which starts as zero."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, dim))
        self.B = nn.Parameter(torch.zeros(dim, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, self.A), self.B


class Step:
    """The side stream at one block."""

    def __init__(self, dtl: DTL, index: int, block: Block, starts: bool, last: bool) -> None:
        self.dtl, self.index, self.block, self.starts, self.last = dtl, index, block, starts, last

    def read(self, x: Tensor) -> Tensor:
        if self.starts:
            self.dtl.low = []
        self.dtl.low.append(self.dtl.side[self.index](x))
        return x

    def write(self, x: Tensor) -> Tensor:
        z = self.dtl.back(self.block)
        if self.last:
            self.dtl.low = []
        return x + z


def gated(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """h sigmoid(beta h) with h = b a, which is as wide as the backbone, so that it is made again and not kept."""
    if torch.compiler.is_compiling():  # torch chooses by itself what it keeps
        return F.silu(beta * F.linear(a, b)) / beta
    z = _Gated.apply(a, b, beta)
    assert isinstance(z, Tensor)
    return z


class _Gated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, beta: float) -> Tensor:
        return F.silu(F.linear(a, beta * b)) / beta

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, b, ctx.beta = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b = ctx.saved_tensors
        g = torch.ops.aten.silu_backward(g, F.linear(a, ctx.beta * b))  # of h
        return g @ b, g.flatten(0, -2).T @ a.flatten(0, -2), None
