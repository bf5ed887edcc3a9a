"""What the convolutional heads share: mmcv's ConvModule under its own names, and resizing as mmseg does."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBN(nn.Module):
    """Convolution without a bias, BatchNorm and ReLU: k^2 in out + 2 out parameters.

    Args:
        into: Channels that it reads.
        out: Channels that it makes.
        kernel: k, odd; the size of the map stays.
    """

    def __init__(self, into: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def classifier(width: int, classes: int) -> nn.Conv2d:
    """The 1x1 convolution that ends every head of mmseg, N(0, 0.01) with no bias to start with."""
    conv = nn.Conv2d(width, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres (align_corners=False)."""
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)
