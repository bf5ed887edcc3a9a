"""SAN's side network: a small ViT beside CLIP that proposes masks and says where CLIP should look.

    x_0     = [queries, patches(image)] + p + fuse_0                         p: query and patch positions
    x_i     = block_i(x_{i-1} (+ p)) + fuse_i                                p again before every block
    fuse_i  = bilinear(Conv1x1(LN(CLIP's map tap_i)))                        on the patches, for the first taps
    masks   = <mlp_q(queries), mlp_p(patches)>
    bias    = w <mlp_q(queries), mlp_a(patches)> + b                         one map for every head of CLIP

Shapes: B images, Q queries, C width of the side network, V width of CLIP, E embedding, H heads of CLIP, L bias maps,
h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpeft.modules import Modules


class SideNetwork(nn.Module):
    """Images and CLIP's maps -> for each supervised block masks [B Q h w] and biases, L of [B H Q h w].

    Parameters of vit_w240n6d8_patch16 on ViT-B/16: ViT 6,123,120, queries 48,000, fusion 744,384 and heads 1,303,554,
    together 8,219,058.

    Args:
        clip_dim: V.
        clip_heads: H, how many bias maps a query has; 1 serves all heads.
        fusions: CLIP maps that are added, at the input and after the first blocks; 4 in the official code.
        image_size: Side that the position table is for; 640. Other sizes resample it.
        patch: Side of a patch.
        dim: C.
        depth: Blocks.
        heads: Of the side network's own attention.
        queries: Q.
        embed: E, and the hidden width of the heads' MLPs where `hidden` is not given.
        hidden: Hidden width of the heads' MLPs.
        supervised: Blocks, counted from 1, whose output is decoded while training; the last alone otherwise.
    """

    def __init__(
        self,
        clip_dim: int,
        clip_heads: int,
        fusions: int = 4,
        image_size: int = 640,
        patch: int = 16,
        dim: int = 240,
        depth: int = 8,
        heads: int = 6,
        queries: int = 100,
        embed: int = 256,
        hidden: int = 256,
        supervised: Sequence[int] = (7, 8),
    ) -> None:
        super().__init__()
        if sorted(supervised) != list(supervised) or not supervised or supervised[-1] != depth or supervised[0] < 1:
            raise ValueError(
                f"san: supervised is {list(supervised)}; it lists blocks from 1 to {depth} in order, {depth} as the "
                "last."
            )
        if fusions > depth + 1:
            raise ValueError(f"san: {fusions} of CLIP's maps are to be fused into {depth} blocks; at most {depth + 1}.")
        self.vit: Any = VisionTransformer(
            img_size=image_size,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            class_token=False,
            global_pool="",
            final_norm=False,
            dynamic_img_size=True,
        )
        self.queries = nn.Parameter(torch.empty(1, queries, dim))
        self.query_pos = nn.Parameter(torch.empty(1, queries, dim))
        nn.init.normal_(self.queries, std=0.02)
        nn.init.normal_(self.query_pos, std=0.02)
        self.fusion = Modules[Fusion](Fusion(clip_dim, dim) for _ in range(fusions))
        self.decoder = MaskDecoder(dim, clip_heads, embed=embed, hidden=hidden)
        self.supervised = tuple(supervised)

    def forward(self, images: Tensor, clip_maps: Sequence[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
        patches = self.vit.patch_embed(images)  # B h w C
        batch, h, w, dim = patches.shape
        positions = torch.cat([self.query_pos, self._patch_positions(h, w)], dim=1)
        x = torch.cat([self.queries.expand(batch, -1, -1), patches.flatten(1, 2)], dim=1)
        x = self._fuse(0, x + positions, clip_maps, (h, w))
        wanted = self.supervised if self.training else self.supervised[-1:]
        decoded = []
        for number, block in enumerate(self.vit.blocks, start=1):
            if number > 1:
                x = x + positions
            x = self._fuse(number, block(x), clip_maps, (h, w))
            if number in wanted:
                queries, rest = x.split([self.queries.shape[1], h * w], dim=1)
                decoded.append(self.decoder(queries, rest.transpose(1, 2).reshape(batch, dim, h, w)))
        return decoded

    def _patch_positions(self, h: int, w: int) -> Tensor:
        return resize_positions(self.vit.pos_embed, self.vit.patch_embed.grid_size, (h, w), prefix=0)

    def _fuse(self, number: int, x: Tensor, clip_maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        if number >= len(self.fusion):
            return x
        queries, patches = x.split([self.queries.shape[1], grid[0] * grid[1]], dim=1)
        return torch.cat([queries, self.fusion[number](patches, clip_maps[number], grid)], dim=1)


class Fusion(nn.Module):
    """patches [B h*w C] + bilinear(Conv1x1(LN(map [B V . .])))."""

    def __init__(self, clip_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(clip_dim, eps=1e-6)
        self.proj = nn.Conv2d(clip_dim, dim, 1)
        nn.init.kaiming_uniform_(self.proj.weight, a=1)
        nn.init.zeros_(self.proj.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, patches: Tensor, clip_map: Tensor, grid: tuple[int, int]) -> Tensor:
        seen = F.interpolate(self.proj(self.norm(clip_map)), size=grid, mode="bilinear", align_corners=False)
        return patches + seen.flatten(2).transpose(1, 2)


class MaskDecoder(nn.Module):
    """Queries [B Q C] and a map [B C h w] -> masks [B Q h w] and `layers` biases [B H Q h w].

    Args:
        dim: C.
        heads: H.
        layers: Blocks of CLIP that get a bias of their own; 1 is one bias for all of them.
        embed: E.
        hidden: Hidden width of the MLPs.
        depth: Layers of the MLPs.
    """

    def __init__(
        self, dim: int, heads: int, layers: int = 1, embed: int = 256, hidden: int = 256, depth: int = 3
    ) -> None:
        super().__init__()
        self.heads, self.layers = heads, layers
        self.query = mlp([dim, *[hidden] * (depth - 1), embed])
        self.pixel = mlp([dim, *[hidden] * (depth - 1), embed], on_map=True)
        self.attention = mlp([dim, *[hidden] * (depth - 1), embed * heads * layers], on_map=True)
        self.rescale = nn.Linear(1, 1)  # torch's own start, whose sign is random, as in the official code

    def forward(self, queries: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        q = self.query(queries)
        masks = torch.einsum("bqc,bchw->bqhw", q, self.pixel(features))
        attention = self.attention(features).unflatten(1, (self.layers, self.heads, -1))  # B L H E h w
        bias = torch.einsum("bqc,blnchw->blnqhw", q, attention)
        bias = self.rescale(bias[..., None]).squeeze(-1)
        return masks, list(bias.unbind(dim=1))


def mlp(widths: Sequence[int], on_map: bool = False) -> nn.Sequential:
    """Affine maps with ReLUs between them, on the last axis or, as 1x1 convolutions, on channels of a map."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 1) if on_map else nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def resize_positions(table: Tensor, grid: tuple[int, int], to: tuple[int, int], prefix: int) -> Tensor:
    """Positions [1 P+N C] of another grid: bicubic without antialiasing, as in the official code; prefix rows stay."""
    if tuple(grid) == tuple(to):
        return table
    first, patches = table[:, :prefix], table[:, prefix:]
    patches = patches.transpose(1, 2).unflatten(2, grid)
    patches = F.interpolate(patches, size=to, mode="bicubic", align_corners=False)
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
