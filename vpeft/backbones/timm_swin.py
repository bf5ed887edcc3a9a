"""timm's SwinTransformer. Tokens come as B H W C, prefix tokens do not exist."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
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
        for stage in self.model.layers:
            self._downsample[len(self.blocks)] = stage.downsample
            self.blocks += [self._block(block) for block in stage.blocks]
        if self.model.num_classes:
            self.unused = tuple(f"head.fc.{name}" for name, _ in self.model.head.fc.named_parameters())

    def _block(self, block: Any) -> Block:
        if type(block) is not SwinTransformerBlock:
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
        )

    def embed(self, images: Tensor) -> Tensor:
        return self.model.patch_embed(images)  # B H W C

    def between(self, index: int, x: Tensor) -> Tensor:
        return self._downsample[index](x) if index in self._downsample else x

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x, pre_logits=True)
