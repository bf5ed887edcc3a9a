"""The parts of ViT-Adapter (Chen et al., ICLR 2023, arXiv:2205.08534): injector, extractor and spatial prior.

Names of parameters are those of czczup/ViT-Adapter @ fd64a51 (Apache-2.0).

Shapes: B images, C channels; x are tokens of patches, c tokens of three maps one after another, `sizes` theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft.dense.deform_attn import DeformableAttention, Size


class Injector(nn.Module):
    """x + gamma * attend(LN(x), LN(c)); gamma starts as zero."""

    def __init__(self, dim: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, heads, 3, points, ratio)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, reference: Tensor, c: Tensor, sizes: Sequence[Size]) -> Tensor:
        return x + self.gamma * self.attn(self.query_norm(x), reference, self.feat_norm(c), sizes)


class Extractor(nn.Module):
    """c + attend(LN(c), LN(x)), and an FFN after that unless `hidden` is 0."""

    def __init__(self, dim: int, heads: int, points: int, ratio: float, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, heads, 1, points, ratio)
        self.ffn = ConvFFN(dim, hidden) if hidden else None
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6) if hidden else None
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, reference: Tensor, x: Tensor, grid: Size, sizes: Sequence[Size]) -> Tensor:
        c = c + self.attn(self.query_norm(c), reference, self.feat_norm(x), [grid])
        if self.ffn is None or self.ffn_norm is None:
            return c
        return c + self.drop_path(self.ffn(self.ffn_norm(c), sizes))


class ConvFFN(nn.Module):
    """An MLP with a depth-wise 3x3 convolution, shared by the maps, before its GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, c: Tensor, sizes: Sequence[Size]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(c), sizes)))


class DWConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, c: Tensor, sizes: Sequence[Size]) -> Tensor:
        maps = [self.dwconv(as_map(part, size)) for part, size in zip(levels(c, sizes), sizes, strict=True)]
        return torch.cat([as_tokens(m) for m in maps], dim=1)


class SpatialPrior(nn.Module):
    """Images -> a map at 1/4 [B C H/4 W/4], and tokens [B h*w C] of maps at 1/8, 1/16 and 1/32."""

    def __init__(self, inplanes: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(3, inplanes, 2), *_conv(inplanes, inplanes, 1), *_conv(inplanes, inplanes, 1), nn.MaxPool2d(3, 2, 1)
        )
        self.conv2 = _conv(inplanes, 2 * inplanes, 2)
        self.conv3 = _conv(2 * inplanes, 4 * inplanes, 2)
        self.conv4 = _conv(4 * inplanes, 4 * inplanes, 2)
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(wide * inplanes, dim, 1) for wide in (1, 2, 4, 4))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(images)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), as_tokens(self.fc2(c2)), as_tokens(self.fc3(c3)), as_tokens(self.fc4(c4))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def as_map(tokens: Tensor, size: Size) -> Tensor:
    # Copied: torch's BatchNorm on a CPU takes the strides of a single image's transposed tokens for channels_last, and
    # its gradients are then wrong (2.13).
    return tokens.transpose(1, 2).unflatten(2, size).contiguous()  # B C h w


def as_tokens(m: Tensor) -> Tensor:
    return m.flatten(2).transpose(1, 2)  # B h*w C


def levels(c: Tensor, sizes: Sequence[Size]) -> tuple[Tensor, ...]:
    return c.split([h * w for h, w in sizes], dim=1)


def resize(m: Tensor, size: Size) -> Tensor:
    return m if m.shape[2:] == size else F.interpolate(m, size=size, mode="bilinear", align_corners=False)
