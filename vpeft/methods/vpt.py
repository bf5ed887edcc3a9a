"""Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv:2203.12119).

    shallow    [cls, _, patches]   = block_L( ... block_1([cls, P, patches]))
    deep       [cls, _, patches]_i = block_i([cls, P_i, patches]_{i-1})

Learned tokens between the class token and the patches: at the first block only, or fresh ones at
every block in the place of the last block's. They get no position embedding.
Shapes: B images, N tokens, C channels, P prompts, L blocks.
"""

from __future__ import annotations

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

    Args:
        prompts: P; the paper tries 1 to 200 and tunes it per task.
        deep: At every block.
        dropout: On the prompts; 0.1 in the VTAB runs of VPT-deep, 0 in the shallow ones.
        project: Width of the prompts before a linear map to d, shared by all blocks; None is d, without a map.

    Raises:
        ValueError: the backbone's attention stays within windows (the official Swin variant is not implemented).
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
        if backbone.windowed:
            raise ValueError(
                f"vpt: {backbone.name} attends within windows, and prompts inside windows are not implemented yet. "
                "Use a plain ViT, or adaptformer or lora on this backbone."
            )
        if prompts < 1:
            raise ValueError(f"vpt: prompts is {prompts}; at least 1 is needed.")
        if project is not None and project < 1:
            raise ValueError(f"vpt: project is {project}; at least 1 is needed, or null for no projection.")
        width, count = project or backbone.blocks[0].dim, len(backbone.blocks) if deep else 1
        self.prompts = nn.Parameter(torch.empty(count, prompts, width))
        bound = (6 / (3 * backbone.patch[0] * backbone.patch[1] + width)) ** 0.5
        nn.init.uniform_(self.prompts, -bound, bound)
        self.project = None if project is None else nn.Linear(project, backbone.blocks[0].dim)
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.weight, mode="fan_out")
        self.dropout = nn.Dropout(dropout)
        self.layers: list[Layer] = []

    def attach(self, backbone: Backbone) -> None:
        blocks = backbone.blocks
        # After every token that stands before the patches now, prompts of an earlier VPT among them.
        self.layers = [Layer(self, index, blocks[0].prefix) for index in range(len(self.prompts))]
        blocks[0].before(self.layers[0].insert)
        for block, layer in zip(blocks[1:], self.layers[1:], strict=False):
            block.before(layer.replace)
        for block in blocks:
            block.grow_prefix(self.prompts.shape[1])
        backbone.before_finish(self.layers[0].remove)

    def tokens(self, index: int, batch: int) -> Tensor:
        """The prompts of one block for every image: B P C."""
        p = self.prompts[index]
        p = p if self.project is None else self.project(p)
        return self.dropout(p.expand(batch, -1, -1))


class Layer:
    """The prompts of one block, and where in the sequence they stand."""

    def __init__(self, vpt: VPT, index: int, at: int) -> None:
        self.vpt, self.index, self.at = vpt, index, at

    def insert(self, x: Tensor) -> Tensor:
        p = self.vpt.tokens(self.index, len(x)).to(x.dtype)
        return torch.cat([x[:, : self.at], p, x[:, self.at :]], dim=1)

    def replace(self, x: Tensor) -> Tensor:
        p = self.vpt.tokens(self.index, len(x)).to(x.dtype)
        return torch.cat([x[:, : self.at], p, x[:, self.at + p.shape[1] :]], dim=1)

    def remove(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.at], x[:, self.at + self.vpt.prompts.shape[1] :]], dim=1)
