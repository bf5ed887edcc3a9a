"""Maps of a plain ViT: after chosen blocks, or after the last.

Shapes: B images, N tokens, C channels, h w the grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vpeft.dense.adapter_modules import as_map
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

SCALES = (4.0, 2.0, 1.0, 0.5)


class Layers(nn.Module):
    """Normalised images [B 3 H W] -> maps [B C h w] of the patches after chosen blocks; without parameters, with
    12 d^2 + 5 d of them (`pyramid`) or 4 (d c + c + 9 c^2 + c) (`multilevel`).

    `pyramid` is Feature2Pyramid and `multilevel` MultiLevelNeck of open-mmlab/mmsegmentation @ v1.2.2 (Apache-2.0), the
    necks of its BEiT and ViT models; maps are then 4, 2, 1 and 1/2 times the grid: strides 4 8 16 32 for patches of 16.
    `bilinear` makes those sizes without parameters, as Rein's first release (w1oves/Rein @ 01db6dd); its later one
    (@ 29755d4) resizes the first map three times over.

    Differs: SyncBatchNorm is BatchNorm2d, which `sync_batchnorm` of a Lightning trainer turns into the former.

    The backbone ends at the last of `layers`: blocks behind it do not run, methods that are built afterwards leave them
    alone, and drop paths and layer decay count without them.

    Args:
        backbone: A plain ViT; methods are built for it afterwards.
        layers: Blocks, counted from 0, after which maps are taken; None is four, evenly spaced (2 5 8 11 of 12).
        rescale: Leave all maps as they are (`none`), or one of the three ways, which take four.
        width: c of `multilevel`; None is d.
        final_norm: Every map passes the backbone's last norm.

    Raises:
        ValueError: a windowed backbone, a block that there is not, or not four maps to rescale.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[int] | None = None,
        rescale: Literal["none", "bilinear", "pyramid", "multilevel"] = "none",
        width: int | None = None,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        depth, dim = len(backbone.blocks), backbone.blocks[0].dim
        self.layers = tuple(layers) if layers is not None else tuple((i + 1) * depth // 4 - 1 for i in range(4))
        _check(backbone, "layers")
        if not self.layers or any(
            later <= earlier for earlier, later in zip((-1, *self.layers), self.layers, strict=False)
        ):
            raise ValueError(f"layers: {list(self.layers)} are not blocks in rising order, counted from 0.")
        if self.layers[-1] >= depth:
            raise ValueError(
                f"layers: there is no block {self.layers[-1]} in {backbone.name}, which has {depth}, counted from 0."
            )
        if rescale != "none" and len(self.layers) != 4:
            raise ValueError(
                f"layers: rescale {rescale} makes four maps of four, and {len(self.layers)} layers are given. Give "
                "four, or set rescale to none."
            )
        if width is not None and rescale != "multilevel":
            raise ValueError(
                f"layers: width is that of rescale multilevel, and rescale is {rescale}. "
                "Leave width out, or set rescale to multilevel."
            )
        self.grid, self.final_norm = backbone.grid, final_norm
        scales = SCALES if rescale != "none" else (1.0,) * len(self.layers)
        wide = (width or dim) if rescale == "multilevel" else dim
        self.channels = [wide] * len(scales)
        self.strides = [int(backbone.patch[0] / scale) for scale in scales]
        kinds = {"none": nn.Identity, "bilinear": Bilinear, "pyramid": Pyramid, "multilevel": MultiLevel}
        self.rescale = kinds[rescale](dim, wide)
        backbone.end_after(self.layers[-1])
        if not final_norm:
            backbone.skip_norm()

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
            if index in self.layers:
                maps.append(_patches(backbone.family.norm(x) if self.final_norm else x, self.grid))
        return self.rescale(maps)


class Bilinear(nn.Module):
    """Maps of four sizes, resized."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return _resized(maps)


class Pyramid(nn.Module):
    """Feature2Pyramid: transposed convolutions upwards, a maximum downwards."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2), nn.BatchNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
        )
        self.up2 = nn.ConvTranspose2d(dim, dim, 2, 2)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        a, b, c, d = maps
        return [self.up4(a), self.up2(b), c, F.max_pool2d(d, 2, 2)]


class MultiLevel(nn.Module):
    """MultiLevelNeck: a 1x1 convolution, a bilinear resize and a 3x3 convolution, of each map its own."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.lateral_convs = Modules[nn.Conv2d](nn.Conv2d(dim, width, 1) for _ in SCALES)
        self.convs = Modules[nn.Conv2d](nn.Conv2d(width, width, 3, padding=1) for _ in SCALES)
        for conv in (*self.lateral_convs, *self.convs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        laterals = [lateral(m) for lateral, m in zip(self.lateral_convs, maps, strict=True)]
        return [conv(m) for conv, m in zip(self.convs, _resized(laterals), strict=True)]


class Last(nn.Module):
    """Normalised images [B 3 H W] -> one map [B C h w], of the patches that leave the last norm; no parameters.

    Args:
        backbone: A plain ViT.

    Raises:
        ValueError: a windowed backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        _check(backbone, "last")
        self.grid = backbone.grid
        self.channels, self.strides = [backbone.blocks[-1].dim], [backbone.patch[0]]

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
        return [_patches(backbone.family.norm(x), self.grid)]


def _resized(maps: list[Tensor]) -> list[Tensor]:
    return [F.interpolate(m, scale_factor=s, mode="bilinear") for m, s in zip(maps, SCALES, strict=True)]


def _patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches, which are the last of the tokens, as B C h w."""
    return as_map(x[:, -grid[0] * grid[1] :], grid)


def _check(backbone: Backbone, neck: str) -> None:
    if backbone.windowed:
        raise ValueError(
            f"{neck} needs a plain ViT, and {backbone.name} attends within windows. Use the neck 'stages'."
        )
