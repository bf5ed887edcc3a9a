"""timm's SwinTransformer. Tokens come as B H W C, and as B 1 N C once prompts stand before the patches.

Shapes: B images, W windows an image, N tokens of one, P prompts, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from vpeft.backbones.refusal import refuse_block
from vpeft.backbones.timm_vit import mlp_affines
from vpeft.seams import Affine, Block, Branch


class TimmSwin:
    unused: tuple[str, ...] = ()

    def __init__(self, model: SwinTransformer) -> None:
        self.model: Any = model
        self.norm: nn.Module = model.norm
        self.affines = {"patch_embed": Affine(self.model.patch_embed.proj, channels=1)}
        if not isinstance(self.model.patch_embed.norm, nn.Identity):
            self.affines["norm_pre"] = Affine(self.model.patch_embed.norm)
        self.affines["norm"] = Affine(self.norm)
        self.blocks: list[Block] = []
        self._downsample: dict[int, Any] = {}
        for index, stage in enumerate(self.model.layers):
            self._downsample[len(self.blocks)] = stage.downsample
            if not isinstance(stage.downsample, nn.Identity):
                self.affines[f"merging{index}"] = Affine(stage.downsample.norm)
            self.blocks += [self._block(block) for block in stage.blocks]
        if self.model.num_classes:
            self.unused = tuple(f"head.fc.{name}" for name, _ in self.model.head.fc.named_parameters())

    def _block(self, block: Any) -> Block:
        if type(block) not in PROMPTED:
            raise refuse_block(block)
        resolution: Any = block.input_resolution
        return Block(
            block,
            attn=Branch(opens=block.norm1, closes=block.drop_path1),
            mlp=Branch(opens=block.norm2, closes=block.drop_path2),
            affines={
                "norm1": Affine(block.norm1),
                "qkv": Affine(block.attn.qkv),
                "proj": Affine(block.attn.proj),
                "norm2": Affine(block.norm2),
                **mlp_affines(block.mlp),
            },
            dim=block.dim,
            grid=resolution,
            windowed=True,
            pads=any(side % window for side, window in zip(resolution, block.window_size, strict=True)),
            heads=block.attn.num_heads,
            attention=block.attn,
            place=_Prefix(block).place,
            counts_prefix=_Prefix(block),
        )

    def embed(self, images: Tensor) -> Tensor:
        return self.model.patch_embed(images)  # B H W C

    def between(self, index: int, x: Tensor) -> Tensor:
        merging = self._downsample.get(index)
        if merging is None or isinstance(merging, nn.Identity):
            return x
        before = self.blocks[index - 1]
        if not before.prefix:
            return merging(x)
        prompts, patches = before.split(x)
        # A merged patch holds four; a prompt takes the place of all of them.
        merged = merging.reduction(merging.norm(prompts.repeat(1, 1, 4)))
        return torch.cat([merged, merging(patches).flatten(1, 2)], dim=1).unsqueeze(1)

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x, pre_logits=True)


class _Prefix:
    """Counts the prompts of one block, and teaches the block of them with the first."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        self.block: Any = block
        self.count = 0

    @property
    def num_prefix_tokens(self) -> int:
        return self.count

    @num_prefix_tokens.setter
    def num_prefix_tokens(self, count: int) -> None:
        self.count = self.block.prompts = count
        self.block.__class__ = PROMPTED.get(type(self.block), type(self.block))
        open_windows(self.block.attn)

    def place(self, count: int) -> None:
        open_windows(self.block.attn)


def open_windows(attn: Any) -> None:
    """Let a window attention take tokens before those of its windows; without any it stays what it was."""
    if not isinstance(attn, OpenWindows):
        attn.__class__ = OpenWindows
        attn.guests = None


def pad_first(model: Any) -> None:
    """Let every block of a timm Swin, before it is wrapped, pad its map before it shifts it, as the official code does.

    Windows larger than a map stay what they are, and shift, as in the official code for segmentation.

    Raises:
        ValueError: it is no Swin.
    """
    if not isinstance(model, SwinTransformer):
        raise ValueError(
            f"+pad_first is for timm's SwinTransformer, whose windows are shifted; this is a {type(model).__name__}. "
            "Leave it out."
        )
    stages: Any = model.layers
    for stage in stages:
        for block in stage.blocks:
            block.__class__ = PadFirst
            block.set_input_size(block.input_resolution, block.window_size, always_partition=True)


class PadFirst(SwinTransformerBlock):
    """Pads its map, then shifts it; timm's own block shifts it, then pads."""

    def _attn(self, x: Tensor) -> Tensor:
        grid: Any = self.input_resolution
        (height, width), (down, across) = grid, self.window_size
        return super()._attn(F.pad(x, (0, 0, 0, -width % across, 0, -height % down)))[:, :height, :width]


class PromptedBlock(SwinTransformerBlock):
    """Takes B 1 N C, the first P tokens prompts, which attend in every window and leave as the mean over them."""

    prompts: int

    def _attn(self, x: Tensor) -> Tensor:
        attn: Any = self.attn
        grid: Any = self.input_resolution
        attn.guests = x[:, 0, : self.prompts]
        patches = super()._attn(x[:, 0, self.prompts :].unflatten(1, grid))
        prompts, attn.guests = attn.guests, None
        return torch.cat([prompts, patches.flatten(1, 2)], dim=1).unsqueeze(1)


class PromptedPadFirst(PromptedBlock, PadFirst):
    """Both: prompts are taken off before the map of patches is padded."""


# Blocks that methods can attach to, and what they become once prompts stand before their patches.
PROMPTED: dict[type, type] = {SwinTransformerBlock: PromptedBlock, PadFirst: PromptedPadFirst}


class OpenWindows(WindowAttention):
    """Window attention whose input may begin with tokens that have no place: neither position bias nor mask.

    `guests` [B P C] are the prompts of each image: a copy of them joins each of its windows, and their mean
    over the windows takes their place afterwards.
    """

    guests: Tensor | None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.guests is None:
            return self._attend(x, mask)
        guests, before = self.guests, x.shape[1] - self.window_area
        count, windows = guests.shape[1], len(x) // len(guests)
        copies = guests.repeat_interleave(windows, dim=0)  # windows come image by image
        y = self._attend(torch.cat([x[:, :before], copies, x[:, before:]], dim=1), mask)
        y, copies, patches = y.split([before, count, self.window_area], dim=1)
        self.guests = copies.unflatten(0, (-1, windows)).mean(1)
        return torch.cat([y, patches], dim=1)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self._placeless = x.shape[1] - self.window_area
        return super().forward(x, None if mask is None else self._pad(mask))

    def _get_rel_pos_bias(self) -> Tensor:
        return self._pad(super()._get_rel_pos_bias())

    def _pad(self, pairs: Tensor) -> Tensor:
        return F.pad(pairs, (self._placeless, 0, self._placeless, 0))
