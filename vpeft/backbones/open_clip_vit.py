"""open_clip's VisionTransformer. Its attention is torch's nn.MultiheadAttention.

The projections of nn.MultiheadAttention are read as tensors and never called: an update of them
acts on the weights while training too. The same checkpoint as a timm model (`*_clip_*`) is faster.

Features are the pooled tokens before the projection into the joint space, as in timm and
transformers, so the same checkpoint gives the same features under all three libraries.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from vpeft.attention import Rest, attend
from vpeft.backbones.refusal import refuse_block
from vpeft.seams import Affine, Block, Branch


class OpenClipViT:
    unused: tuple[str, ...] = ("proj",)

    def __init__(self, model: VisionTransformer) -> None:
        self.model: Any = model
        if self.model.attn_pool is not None:
            raise TypeError(
                "This open_clip tower pools with attention (CoCa). Only towers that pool the class token or the mean "
                "of the patches are supported; timm holds many of the same checkpoints with attention pooling."
            )
        self.norm: nn.Module = self.model.ln_post
        self.affines = {
            "patch_embed": Affine(self.model.conv1, channels=1, absorbs=(self.model, "positional_embedding", 1))
        }
        if not isinstance(self.model.ln_pre, nn.Identity):
            self.affines["norm_pre"] = Affine(self.model.ln_pre)
        self.affines["norm"] = Affine(self.norm)
        self.blocks = [self._block(block) for block in self.model.transformer.resblocks]

    def _block(self, block: Any) -> Block:
        if type(block) is not ResidualAttentionBlock:
            raise refuse_block(block)
        attn: Any = block.attn
        mlp: Any = block.mlp
        return Block(
            block,
            attn=Branch(opens=block.ln_1, closes=block.ls_1),
            mlp=Branch(opens=block.ln_2, closes=block.ls_2),
            affines={
                "norm1": Affine(block.ln_1),
                "qkv": Affine(attn, "in_proj_weight", "in_proj_bias", called=False),
                "proj": Affine(attn.out_proj, called=False),
                "norm2": Affine(block.ln_2),
                "fc1": Affine(mlp.c_fc),
                "fc2": Affine(mlp.c_proj),
            },
            dim=attn.embed_dim,
            grid=self.model.grid_size,
            prefix=1,
            heads=attn.num_heads,
            attention=attn,
            cross=Cross(attn),
            rest=Rest(block.ln_2, mlp, block.ls_1.forward, block.ls_2.forward),
        )

    def embed(self, images: Tensor) -> Tensor:
        return self.model._embeds(images)

    def between(self, index: int, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor) -> Tensor:
        return x if self.model.final_ln_after_pool else self.model.ln_post(x)

    def pool(self, x: Tensor) -> Tensor:
        pooled, _ = self.model._global_pool(x)
        return self.model.ln_post(pooled) if self.model.final_ln_after_pool else pooled


class Cross:
    """Attention of given queries over given context."""

    def __init__(self, attn: nn.MultiheadAttention) -> None:
        self.attn = attn

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._project(x, 1, 3).chunk(2, dim=-1)
        return self._heads(k), self._heads(v)

    def read(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = attend(self._heads(self._project(queries, 0, 1)), k, v)
        proj = self.attn.out_proj
        return F.linear(y, proj.weight, proj.bias)

    def _project(self, x: Tensor, first: int, end: int) -> Tensor:
        rows = slice(first * self.attn.embed_dim, end * self.attn.embed_dim)
        return F.linear(x, self.attn.in_proj_weight[rows], self.attn.in_proj_bias[rows])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)  # B heads N C/heads
