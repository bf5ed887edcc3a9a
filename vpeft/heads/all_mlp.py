"""The all-MLP decode head of SegFormer (Xie et al., NeurIPS 2021, arXiv:2105.15203).

    z_i = up(W_i m_i + b_i)                          every map on the grid of the finest
    y   = W_y relu(BN(W_f [z_n, ..., z_1])) + b_y    W_f: n c -> c, without bias

Shapes: B images, n maps of widths d_i, c the head's width, K outputs, h w the grid of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules


class AllMLP(nn.Module):
    """Maps [B d_i h_i w_i], finest first, -> [B K h w]; (sum(d_i) + n) c + n c^2 + 2 c + (c + 1) K parameters.

    637,717 on Swin-T's four maps with c = 256 and 21 classes. Official code: NVlabs/SegFormer @ 65fa8cf (NVIDIA Source
    Code License; nothing of it is used), as mmseg's SegformerHead with the concatenation from coarse to fine.

    Args:
        channels: d_i.
        classes: K.
        width: c; 256 in SegFormer's small models.
        dropout: Of whole channels before the last map; 0.1 there.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = Modules[nn.Conv2d](nn.Conv2d(dim, width, 1) for dim in channels)
        self.fuse = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        found = [embed(x) for embed, x in zip(self.embed, maps, strict=True)]
        found = [F.interpolate(z, size, mode="bilinear", align_corners=False) for z in reversed(found)]
        return self.predict(self.dropout(F.relu(self.norm(self.fuse(torch.cat(found, dim=1))))))
