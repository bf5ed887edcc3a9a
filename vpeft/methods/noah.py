"""NOAH, Neural Prompt Search (Zhang et al., TPAMI 2024, arXiv:2206.04673).

    attention   W_qkv h + B[:, :r] A[:r] h             on [cls, P[:n], patches]
    mlp         m + U[:, :w] qgelu(D[:w] m + c[:w]) + u      m = mlp(norm(x)),  qgelu(a) = a sigmoid(1.702 a)

Prompts, LoRA and an adapter in every block, each with a width of its own: n prompts, rank r, w hidden units.
Which module stands in which block, and how wide, is the architecture. `vpeft.search` trains the widest
one with a random architecture at every step, each the leading slices of the same weights, and then looks for the
best under a budget.
Shapes: B images, N tokens, H W grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.methods.bottleneck import Bottleneck
from vpeft.methods.lora import LowRank
from vpeft.modules import Modules
from vpeft.seams import Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


@dataclass(frozen=True)
class Architecture:
    """Width of each module in each block; 0 is none.

    Args:
        prompts: n of every block. A block without keeps the prompts that an earlier one has put there.
        lora: r of every block.
        adapter: w of every block.
    """

    prompts: tuple[int, ...]
    lora: tuple[int, ...]
    adapter: tuple[int, ...]


class NOAH(nn.Module):
    """Prompts, LoRA on qkv and adapters of widths of their own; d (sum n + 4 sum r + 2 sum w + M) + sum w
    parameters in all, for M blocks with an adapter: 654,456 for n = r = w = 10 on ViT-B/16.

    One number is the width in all blocks, a list has one for each: what `tools/search.py` finds and writes.
    Initialised as the official code does (ZhangYuanhan-AI/NOAH @ e9c55f3, MIT): prompts, D and U xavier, their
    biases N(0, 1e-6), A kaiming, B zero; dropout 0.1 on prompts, on the input of A and before U. Not a no-op at
    the start. The subnets published there for VTAB-1k have 287,278 to 431,686 parameters by this formula (320,330
    for CIFAR-100); the official count adds prompts at the input that block 1 replaces, so that nothing ever reads
    them.

    Differs: prompts stand before the patches, not at the end of the sequence, which attention does not see; they
    leave before the final norm; a block's prompts replace all that stand there, where the official code would pile
    them up behind a block without (its search space has no such case); a subnet is initialised at its own widths,
    there as a slice of 100; the branch for prefix tuning, which does not run there, is left out.

    Args:
        prompts: n; the widest of the official search space for VTAB-1k is 10.
        lora: r; likewise.
        adapter: w; likewise.
        dropout: 0.1 in the official code.

    Raises:
        ValueError: a list of another length than the backbone has blocks; no module at all; dropout on an attention
            that torch reads as tensors.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: int | Sequence[int] = 10,
        lora: int | Sequence[int] = 10,
        adapter: int | Sequence[int] = 10,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        given = {"prompts": prompts, "lora": lora, "adapter": adapter}
        self.widest = Architecture(**{name: _widths(name, value, backbone) for name, value in given.items()})
        widths = list(zip(*astuple(self.widest), strict=True))
        if not any(map(any, widths)):
            raise ValueError("noah: prompts, lora and adapter are all 0; give at least one block a module.")
        self.cells = Modules[Cell](
            Cell(block, nn.Dropout(dropout), *own) for block, own in zip(backbone.blocks, widths, strict=True)
        )
        self.blocks: list[Block] = []

    def attach(self, backbone: Backbone) -> None:
        self.blocks = backbone.blocks
        at = self.blocks[0].prefix
        for block, cell in zip(self.blocks, self.cells, strict=True):
            cell.at = at
            if cell.prompts is not None:
                block.before(cell.insert)
            if cell.down is not None:
                for (affine, _), update in zip(block.find("qkv"), cell.updates, strict=True):
                    affine.edit(update)
            if cell.adapter is not None:
                block.mlp.edit(cell.adapter)
        self.sample()
        if any(self.widest.prompts):
            backbone.before_finish(self.leave)

    def sample(self, architecture: Architecture | None = None) -> None:
        """Let the leading slices of these widths act, and nothing else; None is all there is."""
        standing = 0
        widths = zip(*astuple(architecture or self.widest), strict=True)
        for block, cell, (prompts, lora, adapter) in zip(self.blocks, self.cells, widths, strict=True):
            arriving, standing = standing, prompts or standing
            if standing != cell.standing:
                block.grow_prefix(standing - cell.standing)
            cell.set(prompts, lora, adapter, arriving, standing)

    def size(self, architecture: Architecture) -> int:
        """Parameters of an architecture: what a NOAH of these widths owns."""
        widths = zip(*astuple(architecture), strict=True)
        return sum(cell.size(*own) for cell, own in zip(self.cells, widths, strict=True))

    def leave(self, x: Tensor) -> Tensor:
        """Tokens leaving the last block, without the prompts."""
        *_, last = self.cells
        grid = self.blocks[-1].grid
        tokens = x.flatten(1, -2)
        tokens = torch.cat([tokens[:, : last.at], tokens[:, last.at + last.standing :]], dim=1)  # B N C
        if x.ndim == 3:
            return tokens
        alone = tokens.shape[1] == grid[0] * grid[1]
        return tokens.unflatten(1, grid) if alone else tokens.unsqueeze(1)  # B H W C, or B 1 N C with other prompts


class Cell(nn.Module):
    """What one block gets."""

    def __init__(self, block: Block, dropout: nn.Dropout, prompts: int, lora: int, adapter: int) -> None:
        super().__init__()
        dim, maps = block.dim, block.find("qkv")
        self.dim, self.outputs = dim, sum(affine.shape[0] for affine, _ in maps)
        if lora and dropout.p and not all(affine.called for affine, _ in maps):
            raise ValueError(
                f"noah: dropout is {dropout.p}, but the attention of this backbone reads 'qkv' as a tensor, so that "
                "its input is never seen. Set dropout to 0, or take the same weights from timm."
            )
        self.dropout = dropout
        self.prompts = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, prompts, dim))[0]) if prompts else None
        self.down = nn.Linear(dim, lora, bias=False) if lora else None
        if self.down is not None:
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        self.updates = Modules[LowRank](
            LowRank((self.down,), [rows], affine.shape[0], lora, 1.0, dropout)
            for affine, rows in maps
            if self.down is not None
        )
        self.adapter = Adapter(dim, adapter, dropout.p) if adapter else None
        self.at = 0  # first place of the prompts in the sequence
        self.width = self.arriving = self.standing = 0  # prompts of this block, and in the sequence before and after

    def set(self, prompts: int, lora: int, adapter: int, arriving: int, standing: int) -> None:
        self.width, self.arriving, self.standing = prompts, arriving, standing
        for update in self.updates:
            update.width = lora
        if self.adapter is not None:
            self.adapter.width = adapter

    def size(self, prompts: int, lora: int, adapter: int) -> int:
        adapters = (2 * self.dim + 1) * adapter + self.dim if adapter else 0
        return prompts * self.dim + lora * (self.dim + self.outputs) + adapters

    def insert(self, x: Tensor) -> Tensor:
        assert self.prompts is not None
        p = self.dropout(self.prompts[: self.width].expand(len(x), -1, -1)).to(x.dtype)  # B n C
        rest = self.at + (self.arriving if self.width else 0)
        tokens = x.flatten(1, -2)
        tokens = torch.cat([tokens[:, : self.at], p, tokens[:, rest:]], dim=1)
        return tokens if x.ndim == 3 else tokens.unsqueeze(1)  # B N C, windowed B 1 N C


class Adapter(nn.Module):
    """y + up(dropout(qgelu(down(y)))) on its first `width` hidden units."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.bottleneck, self.width = Bottleneck(dim, width, "quick_gelu", dropout).init_xavier(), width

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        down, up = self.bottleneck.down, self.bottleneck.up
        z = F.linear(y, down.weight[: self.width], down.bias[: self.width])
        z = self.bottleneck.dropout(self.bottleneck.act(z))
        # Without a hidden unit there is no adapter, and its bias is still part of the graph, as DDP wants it.
        bias = up.bias if self.width else 0 * up.bias
        return y + F.linear(z, up.weight[:, : self.width], bias).reshape(y.shape)


def _widths(name: str, value: int | Sequence[int], backbone: Backbone) -> tuple[int, ...]:
    depth = len(backbone.blocks)
    widths = (value,) * depth if isinstance(value, int) else tuple(value)
    if len(widths) != depth:
        raise ValueError(
            f"noah: {name} has {len(widths)} widths and {backbone.name} has {depth} blocks; an architecture is for the "
            "depth it was searched on. Search on this backbone, or give one number for all blocks."
        )
    if min(widths) < 0:
        raise ValueError(f"noah: {name} is {value}; a width is at least 0, which is no module.")
    return widths
