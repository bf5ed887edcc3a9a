"""The linear probe of dense features (Oquab et al., TMLR 2024, arXiv:2304.07193).

logits = W norm(cat[x_1, up(x_2), ...]) + b
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpeft.heads.conv import classifier, resize


class LinearBNHead(nn.Module):
    """BatchNorm and a 1x1 convolution; 2 C + K (C + 1) parameters: 116,886 for one map of 768 and 150 classes.

    Several maps are resized to the finest and concatenated, C is then their sum (facebookresearch/dinov2 @ 7c503b3,
    Apache-2.0: BNHead with `resize_concat`, one map for "lin." and four for "+ms").

    Differs: BatchNorm2d where the official code has SyncBN; Lightning's `sync_batchnorm` makes it one.

    Args:
        channels: Of each map, finest first.
        classes: K.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(sum(channels))
        self.conv_seg = classifier(sum(channels), classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B K h w] of maps [B C h w]."""
        size = maps[0].shape[-2:]
        return self.conv_seg(self.bn(torch.cat([maps[0], *(resize(x, size) for x in maps[1:])], dim=1)))
