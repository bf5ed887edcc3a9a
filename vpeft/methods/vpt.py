"""Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv:2203.12119).

    shallow    [cls, _, patches]   = block_L( ... block_1([cls, P, patches]))
    deep       [cls, _, patches]_i = block_i([cls, P_i, patches]_{i-1})

Learned tokens between the class token and the patches: at the first block only, or fresh ones at
every block in the place of the last block's. They get no position embedding.
Shapes: B images, N tokens, C channels, P prompts, L blocks.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class VPT(nn.Module):
    """P prompts of width d at one block or at all L; P d or L P d parameters: 460,800 deep, P = 50, ViT-B/16.

    As in KMnP/vpt @ 4410440: initialised U(-v, v) with v = sqrt(6 / (3 p^2 + d)) for patches of p
    pixels; dropout on the prompts; an optional linear map from a smaller width. They leave before the
    final norm, so a backbone that pools its patches pools the same ones as without prompts (the
    official code reads the class token, where this makes no difference). Not a no-op at the start.

    On Swin, as in the official code: a copy of the prompts joins every window and their mean over the
    windows goes on, patch merging repeats them four times, and the pooled mean includes them. Differs: an
    image's windows meet its own prompts (the official order of a batch lets images mix, which its
    batches of one do not). The count is then P times the sum of the blocks' widths.

    Args:
        prompts: P; the paper tries 1 to 200 and tunes it per task.
        deep: At every block.
        dropout: On the prompts; 0.1 in the VTAB runs of VPT-deep, 0 in the shallow ones.
        project: Width of the prompts before a linear map to d, shared by all blocks; None is d, without a map.

    Raises:
        ValueError: fewer than one prompt; `project` where the width grows from stage to stage (Swin).
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: int = 50,
        deep: bool = True,
        dropout: float = 0.1,
        project: int | None = None,
    ) -> None:
        super().__init__()
        if prompts < 1:
            raise ValueError(f"vpt: prompts is {prompts}; at least 1 is needed.")
        if project is not None and project < 1:
            raise ValueError(f"vpt: project is {project}; at least 1 is needed, or null for no projection.")
        blocks = backbone.blocks if deep else backbone.blocks[:1]
        if project is not None and len({block.dim for block in blocks}) > 1:
            raise ValueError(
                f"vpt: project is {project}, and {backbone.name} grows wider from stage to stage, so that no one "
                "map fits all its blocks. Leave project out."
            )
        first = project or blocks[0].dim
        bound = (6 / (3 * backbone.patch[0] * backbone.patch[1] + first)) ** 0.5
        # One tensor for every run of blocks of one width: P C of each block in it.
        self.prompts = nn.ParameterList(
            nn.Parameter(torch.empty(len(list(run)), prompts, project or dim).uniform_(-bound, bound))
            for dim, run in itertools.groupby(blocks, lambda block: block.dim)
        )
        self.places = [(group, row) for group, run in enumerate(self.prompts) for row in range(len(run))]
        self.count = prompts
        self.project = None if project is None else nn.Linear(project, blocks[0].dim)
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.weight, mode="fan_out")
        self.dropout = nn.Dropout(dropout)
        self.layers: list[Layer] = []

    def attach(self, backbone: Backbone) -> None:
        blocks = backbone.blocks
        # After every token that stands before the patches now, prompts of an earlier VPT among them.
        self.layers = [Layer(self, index, blocks[0].prefix) for index in range(len(self.places))]
        blocks[0].before(self.layers[0].insert)
        for block, layer in zip(blocks[1:], self.layers[1:], strict=False):
            block.before(layer.replace)
        for block in blocks:
            block.grow_prefix(self.count)
        if not backbone.windowed:
            backbone.before_finish(self.layers[0].remove)

    def tokens(self, index: int, batch: int) -> Tensor:
        """The prompts of one block for every image: B P C."""
        group, row = self.places[index]
        p = self.prompts[group][row]
        p = p if self.project is None else self.project(p)
        return self.dropout(p.expand(batch, -1, -1))


class Layer:
    """The prompts of one block, and where in the sequence they stand."""

    def __init__(self, vpt: VPT, index: int, at: int) -> None:
        self.vpt, self.index, self.at = vpt, index, at

    def insert(self, x: Tensor) -> Tensor:
        return self._put(x, self.at)

    def replace(self, x: Tensor) -> Tensor:
        return self._put(x, self.at + self.vpt.count)

    def _put(self, x: Tensor, rest: int) -> Tensor:
        p = self.vpt.tokens(self.index, len(x)).to(x.dtype)
        tokens = x.flatten(1, -2)
        tokens = torch.cat([tokens[:, : self.at], p, tokens[:, rest:]], dim=1)
        return tokens if x.ndim == 3 else tokens.unsqueeze(1)  # B N C, windowed B 1 N C

    def remove(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.at], x[:, self.at + self.vpt.count :]], dim=1)
