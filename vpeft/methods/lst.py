"""Ladder Side-Tuning (Sung et al., NeurIPS 2022, arXiv:2206.06522).

    s_0 = D_0 x_0
    s_i = side_i(g_i s_{i-1} + (1 - g_i) D_i x_i)      g_i = sigmoid(a_i / 0.1)
    features = pool(U norm(s_L))

A narrow transformer beside the frozen one, which climbs it over one gated rung a block. The backbone is only read, so
nothing runs backward through it.
Shapes: B images, N tokens, C channels, W = C / r channels of the side network, H W grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as SideBlock
from torch import Tensor, nn

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.seams import Block

TEMPERATURE = 0.1  # of the gates, in the official code


class LST(nn.Module):
    """A ViT of width w = d / r beside one of width d; with its hidden width m = 4 w it has
    L (4 w^2 + 2 w m + 9 w + m + 1) + (L + 1) (d + 1) w + 2 w + (w + 1) d parameters: 2,376,492 for r = 8 on ViT-B/16.

    That is 1,342,080 in blocks, 959,712 in the maps D, 74,496 in U, and gates and last norm; DTL's comparison counts
    2.38 M as well. As in ylsung/Ladder-Side-Tuning @ 1798e82 (MIT, T5): a rung joins before its side block, gates start
    at 1/2 with temperature 0.1, as many heads as the backbone has, D and U with biases, and side blocks that begin as a
    pruned backbone. `residual` is its option to mix U norm(s_L) with the backbone's own last tokens by one more gate.

    Differs: the paper prunes by Fisher information and chooses channels anew at every layer. Here rows of q, k, v
    (within each head) and fc1 with the largest L1 norm stay, and one set of channels of the residual stream, those that
    proj and fc2 of all blocks write to most; D_i begins as the choice of these. Layer scales and gated MLPs are not
    carried over. In Swin a stage begins with D x and a linear map of the stage before, averaged to its grid, and side
    blocks attend globally.

    Args:
        reduction: r; 8 in the paper's main runs.
        init: Side blocks from the `pruned` backbone, or `random`.
        residual: Mix in the backbone's own last tokens.

    Raises:
        ValueError: the width of a head cannot be divided by r.
    """

    def __init__(
        self,
        backbone: Backbone,
        reduction: int = 8,
        init: Literal["pruned", "random"] = "pruned",
        residual: bool = False,
    ) -> None:
        super().__init__()
        blocks = backbone.blocks
        for block in blocks:
            if reduction < 1 or (block.dim // block.heads) % reduction:
                raise ValueError(
                    f"lst: reduction is {reduction}; a whole number is needed that divides the width of a head, which "
                    f"is {block.dim // block.heads} in {backbone.name}."
                )
        self.rungs = Modules[Rung](
            Rung(block, before, reduction) for block, before in zip(blocks, [None, *blocks[:-1]], strict=True)
        )
        width, dim = blocks[-1].dim // reduction, blocks[-1].dim
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, dim)
        self.gate = nn.Parameter(torch.zeros(1)) if residual else None
        if init == "pruned":
            prune(backbone, self.rungs)
        self.backbone: tuple[Backbone, ...] = ()  # in a tuple: read, not owned

    def attach(self, backbone: Backbone) -> None:
        self.backbone = (backbone,)
        stream = Stream()
        for block, rung in zip(backbone.blocks, self.rungs, strict=True):
            rung.stream = stream
            if rung.enter is not None:
                block.before(rung.begin)
            block.after(rung.climb)
        backbone.read_with(self.features)

    def features(self, x: Tensor) -> Tensor:
        """Tokens leaving the last block -> [B, C]; they are read only where `residual` is on."""
        (backbone,) = self.backbone
        *_, last = self.rungs
        s = self.up(self.norm(last.stream.take()))  # B N C
        if self.gate is not None:
            g = torch.sigmoid(self.gate / TEMPERATURE)
            s = g * s + (1 - g) * backbone.family.finish(last.own(x))
        return backbone.pool(s.unflatten(1, last.grid) if x.ndim == 4 else s)


class Stream:
    """The tokens [B N W] of the side network, on their way from rung to rung."""

    def __init__(self) -> None:
        self.s: Tensor | None = None

    def take(self) -> Tensor:
        assert self.s is not None, "the ladder is climbed from its first block"
        s, self.s = self.s, None
        return s


class Rung(nn.Module):
    """What stands beside one block: a map D, a gate and a side block; D_0 or its like where a stage begins."""

    stream: Stream

    def __init__(self, block: Block, before: Block | None, reduction: int) -> None:
        super().__init__()
        self.grid, self.prefix = block.grid, block.prefix
        width, (fc2, _) = block.dim // reduction, block.find("fc2")[0]
        starts = before is None or (before.dim, before.grid) != (block.dim, block.grid)
        self.enter = nn.Linear(block.dim, width) if starts else None
        self.carry = nn.Linear(before.dim // reduction, width) if starts and before is not None else None
        self.grid_before = block.grid if before is None else before.grid
        self.down = nn.Linear(block.dim, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.side = SideBlock(width, block.heads, mlp_ratio=fc2.shape[1] / block.dim, qkv_bias=True)

    def begin(self, x: Tensor) -> Tensor:
        assert self.enter is not None, "only the first rung of a stage begins"
        s = self.enter(self.own(x))
        if self.carry is not None:
            old = self.stream.take().unflatten(1, self.grid_before).permute(0, 3, 1, 2)  # B W H W
            side = [-(-before // now) for before, now in zip(self.grid_before, self.grid, strict=True)]
            # Not adaptive_avg_pool2d: its backward on a GPU is not deterministic, which runs insist on.
            old = F.avg_pool2d(old, side, ceil_mode=True)  # B W H W
            s = s + self.carry(old.flatten(2).transpose(1, 2))
        self.stream.s = s
        return x

    def climb(self, x: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate / TEMPERATURE)
        self.stream.s = self.side(g * self.stream.take() + (1 - g) * self.down(self.own(x)))
        return x

    def own(self, x: Tensor) -> Tensor:
        """Tokens B N C without any that another method has put before the patches."""
        x, patches = x.flatten(1, -2), self.grid[0] * self.grid[1]
        if x.shape[1] == self.prefix + patches:
            return x
        return torch.cat([x[:, : self.prefix], x[:, -patches:]], dim=1)


@torch.no_grad()
def prune(backbone: Backbone, rungs: Iterable[Rung]) -> None:
    """Let side blocks begin with the rows and columns of the backbone's that weigh most."""
    blocks = list(zip(backbone.blocks, rungs, strict=True))
    written: dict[int, list[Tensor]] = {}  # by width: what is written to each channel of the residual stream
    for block, _ in blocks:
        written.setdefault(block.dim, []).extend(_rows(_of(block, role)) for role in ("proj", "fc2"))
    for block, rung in blocks:
        side: Any = rung.side
        width = rung.down.out_features
        channels = _largest(torch.stack(written[block.dim]).sum(0), width)
        for down in (rung.down, rung.enter):
            if down is not None:
                down.weight.copy_(torch.eye(block.dim, device=channels.device)[channels])
                down.bias.zero_()
        qkv = [_of(block, role) for role in "qkv"]
        of_heads = torch.stack([_rows(map_).log() for map_ in qkv]).sum(0).unflatten(0, (block.heads, -1))
        offsets = torch.arange(0, block.dim, block.dim // block.heads, device=channels.device).unsqueeze(1)
        inner = (_largest(of_heads, width // block.heads) + offsets).flatten()
        side.attn.qkv.weight.copy_(torch.cat([w[inner][:, channels] for w, _ in qkv]))
        side.attn.qkv.bias.copy_(torch.cat([b[inner] for _, b in qkv]))
        maps = [(side.attn.proj, "proj", channels, inner)]
        if "fc1" in block.affines:
            hidden = _largest(_rows(_of(block, "fc1")), side.mlp.fc1.out_features)
            maps += [(side.mlp.fc1, "fc1", hidden, channels), (side.mlp.fc2, "fc2", channels, hidden)]
        for linear, role, rows, columns in maps:
            w, b = _of(block, role)
            linear.weight.copy_(w[rows][:, columns])
            linear.bias.copy_(b[rows])
        for norm, role in ((side.norm1, "norm1"), (side.norm2, "norm2")):
            w, b = _of(block, role)
            norm.weight.copy_(w[channels])
            norm.bias.copy_(b[channels])


def _of(block: Block, role: str) -> tuple[Tensor, Tensor]:
    """W and b of one map; a bias that is not there is zero."""
    affine, rows = block.find(role)[0]
    w, b = getattr(affine.owner, affine.weight)[rows], getattr(affine.owner, affine.bias)
    return w, w.new_zeros(len(w)) if b is None else b[rows]


def _rows(map_: tuple[Tensor, Tensor]) -> Tensor:
    return map_[0].abs().sum(dim=1)


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(count).indices.sort().values
