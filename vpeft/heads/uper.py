"""UPerNet (Xiao et al., ECCV 2018, arXiv:1807.10221), as mmsegmentation trains it.

    top = conv3(cat[x_L, up(conv1(pool_1(x_L))), ..., up(conv1(pool_6(x_L)))])
    p_L = top,    p_i = conv1(x_i) + up(p_{i+1})
    logits = classify(dropout(conv3(cat[conv3(p_1), ..., up(conv3(p_{L-1})), up(p_L)])))

A pyramid of pooled contexts on the coarsest map, and a feature pyramid over all of them.

Shapes: B images, C channels of a map, K classes, h w the grid of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpeft.heads.conv import ConvBN, classifier, resize
from vpeft.modules import Modules


class UPerHead(nn.Module):
    """Pools, pyramid and classifier; 32,332,950 parameters for four maps of 768, width 512 and 150 classes.

    With L maps of C_1 .. C_L channels, width w and S pooled sizes: w (S C_L + 9 (C_L + S w) + sum_{i<L} (C_i + 9 w)
    + 9 L w) + 2 w (S + 2 L) + K (w + 1). Its state dict is that of mmseg's UPerHead (open-mmlab/mmsegmentation @
    v1.2.2, Apache-2.0), so that a `decode_head.` of it loads.

    Differs: BatchNorm2d where mmseg's configs say SyncBN; Lightning's `sync_batchnorm` makes it one.

    Args:
        channels: C of each map, finest first.
        classes: K.
        width: w; 512 in mmseg's configs.
        scales: Sides of the pooled maps; 1 2 3 6 in mmseg.
        dropout: Of whole channels before the classifier; 0.1 in mmseg.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 512,
        scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *lower, top = channels
        self.pools_to_a_cell = 1 in scales
        self.psp_modules = Modules[nn.Sequential](
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvBN(top, width, 1)) for scale in scales
        )
        self.bottleneck = ConvBN(top + len(scales) * width, width, 3)
        self.lateral_convs = Modules[ConvBN](ConvBN(dim, width, 1) for dim in lower)
        self.fpn_convs = Modules[ConvBN](ConvBN(width, width, 3) for _ in lower)
        self.fpn_bottleneck = ConvBN(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B K h w] of maps [B C h w], finest first."""
        top = maps[-1]
        pooled = [resize(pool(top), top.shape[-2:]) for pool in self.psp_modules]
        pyramid = [self.bottleneck(torch.cat([top, *pooled], dim=1))]
        for x, lateral in zip(maps[-2::-1], list(self.lateral_convs)[::-1], strict=True):
            pyramid.insert(0, lateral(x) + resize(pyramid[0], x.shape[-2:]))
        levels = [conv(level) for conv, level in zip(self.fpn_convs, pyramid[:-1], strict=True)] + pyramid[-1:]
        levels = [levels[0], *(resize(level, levels[0].shape[-2:]) for level in levels[1:])]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(levels, dim=1))))
