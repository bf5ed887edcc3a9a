"""The concatenating head of HRNet (Wang et al., TPAMI 2020, arXiv:1908.07919), behind reductions as MTLoRA has them.

    z_i = up(R_i m_i)                                    R_i: d_i -> c_i, every map on the grid of the finest
    y   = W_2 relu(BN(W_1 [z_1, ..., z_n] + b_1)) + b_2  W_1: c -> 4 c,  c = sum(c_i)

Shapes: B images, n maps of widths d_i, K outputs, h w the grid of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules


class HighResolution(nn.Module):
    """Maps [B d_i h_i w_i], finest first, -> [B K h w]; sum(d_i c_i) + 4 c^2 + 12 c + (4 c + 1) K parameters.

    500,709 for MTLoRA's maps of Swin-T and 21 classes. Official code: scale-lab/MTLoRA @ 333a375 (MIT), its decoder
    `hrnet` with the per-task reductions that its configs switch on.

    Args:
        channels: d_i.
        classes: K.
        reduced: c_i; 18 36 72 144 there.
    """

    def __init__(self, channels: Sequence[int], classes: int, reduced: Sequence[int] = (18, 36, 72, 144)) -> None:
        super().__init__()
        if len(reduced) != len(channels):
            raise ValueError(
                f"The head hrnet reduces {len(reduced)} maps, and the backbone hands on {len(channels)}. Take a "
                f"backbone with {len(reduced)} stages, such as a Swin, or head.kind all_mlp."
            )
        width = sum(reduced)
        self.reduce = Modules[nn.Conv2d](
            nn.Conv2d(dim, to, 1, bias=False) for dim, to in zip(channels, reduced, strict=True)
        )
        self.fuse = nn.Conv2d(width, 4 * width, 1)
        self.norm = nn.BatchNorm2d(4 * width)
        self.predict = nn.Conv2d(4 * width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        found = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        found = [F.interpolate(z, size, mode="bilinear", align_corners=False) for z in found]
        return self.predict(F.relu(self.norm(self.fuse(torch.cat(found, dim=1)))))
