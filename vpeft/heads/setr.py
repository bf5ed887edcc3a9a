"""SETR-PUP (Zheng et al., CVPR 2021, arXiv:2012.15840): progressive upsampling, as mmsegmentation trains it.

    logits = classify(dropout(up(conv3(...up(conv3(norm(x_i)))))))        up: bilinear, 2 times as large

Shapes: B images, C channels of a map, K classes, h w the grid of the map that is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from vpeft.heads.conv import ConvBN, classifier
from vpeft.modules import Modules


class SETRHead(nn.Module):
    """Convolutions on one map that each make it larger; 2 C + w (9 C + 2) + (n - 1) w (9 w + 2) + K (w + 1) parameters:
    4,171,414 for a map of 1024 and 150 classes.

    Its state dict is that of mmseg's SETRUPHead (open-mmlab/mmsegmentation @ v1.2.2, Apache-2.0). SETR-PUP of its
    ADE20K config is this head on the last of four maps, and three auxiliary ones on the others with `convs: 2,
    scale: 4`, of 2,990,742 parameters each.

    Differs: BatchNorm2d where mmseg's configs say SyncBN; Lightning's `sync_batchnorm` makes it one.

    Args:
        channels: C of each map, finest first.
        classes: K.
        width: w; 256 in mmseg's configs.
        convs: n; 4 in mmseg's SETR-PUP.
        scale: How much larger the map is after each convolution; 2 there.
        index: Which map it reads; the last there.
        dropout: Of whole channels before the classifier; 0 there.

    Raises:
        ValueError: there is no such map, or less than one convolution.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        convs: int = 4,
        scale: int = 2,
        index: int = -1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not -len(channels) <= index < len(channels):
            raise ValueError(f"setr: index is {index}, and the neck makes {len(channels)} maps, counted from 0.")
        if convs < 1 or scale < 1:
            raise ValueError(f"setr: convs is {convs} and scale is {scale}; at least 1 of each is needed.")
        self.index = index
        self.norm = LayerNorm2d(channels[index], eps=1e-6)
        widths = [channels[index], *[width] * convs]
        self.up_convs = Modules[nn.Sequential](
            nn.Sequential(ConvBN(into, out, 3), nn.Upsample(scale_factor=scale, mode="bilinear"))
            for into, out in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B K h*scale^n w*scale^n] of maps [B C h w]."""
        x = self.norm(maps[self.index])
        for up_conv in self.up_convs:
            x = up_conv(x)
        return self.conv_seg(self.dropout(x))
