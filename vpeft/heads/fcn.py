"""FCN (Long et al., CVPR 2015, arXiv:1411.4038), as mmsegmentation's auxiliary head.

logits = classify(dropout(conv3(...conv3(x_i))))
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from vpeft.heads.conv import ConvBN, classifier


class FCNHead(nn.Module):
    """Convolutions on one map; w (9 C + 2) + (n - 1) w (9 w + 2) + K (w + 1) parameters: 1,808,534 for a map of 768.

    Its state dict is that of mmseg's FCNHead with `concat_input=False` (open-mmlab/mmsegmentation @ v1.2.2,
    Apache-2.0). As an auxiliary head it is trained with 0.4 of the loss and left out of predictions; the count is
    with the defaults and 150 classes.

    Args:
        channels: C of each map, finest first.
        classes: K.
        width: w; 256 in mmseg's configs.
        convs: n; 1 in mmseg's auxiliary heads.
        index: Which map it reads; 2, stride 16, in mmseg's auxiliary heads.
        dropout: Of whole channels before the classifier; 0.1 in mmseg.

    Raises:
        ValueError: there is no such map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        convs: int = 1,
        index: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not -len(channels) <= index < len(channels):
            raise ValueError(f"fcn: index is {index}, and the neck makes {len(channels)} maps, counted from 0.")
        if convs < 1:
            raise ValueError(f"fcn: convs is {convs}; at least 1 is needed. A head without any is linear_bn.")
        self.index = index
        widths = [channels[index], *[width] * convs]
        self.convs = nn.Sequential(*(ConvBN(into, out, 3) for into, out in itertools.pairwise(widths)))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B K h w] of maps [B C h w], on the grid of the one that is read."""
        return self.conv_seg(self.dropout(self.convs(maps[self.index])))
