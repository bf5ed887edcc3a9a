"""timm's Eva: the ViTs with rotary position embeddings, DINOv3 among them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlock
from torch import Tensor

from vpeft.attention import Rest, attend
from vpeft.backbones.refusal import refuse_block
from vpeft.backbones.timm_vit import gate_affine, mlp_affines, outer_parts
from vpeft.seams import Affine, Block, Branch


class TimmEva:
    def __init__(self, model: Eva) -> None:
        self.model: Any = model
        self.rotary: Tensor | None = None  # of the images being embedded; every block reads it
        self.norm, self.affines, self.unused = outer_parts(self.model)
        self.blocks = [self._block(index, block) for index, block in enumerate(self.model.blocks)]

    def _block(self, index: int, block: Any) -> Block:
        if type(block) is not EvaBlock:
            raise refuse_block(block)
        attn: Any = block.attn
        if attn.qkv is None:
            maps = {"q": Affine(attn.q_proj), "k": Affine(attn.k_proj), "v": Affine(attn.v_proj)}
        else:
            # With a q bias and a v bias beside it, the fused weight is read and not called.
            biased_apart = getattr(attn, "q_bias", None) is not None
            called = not biased_apart or attn.qkv_bias_separate
            maps = {"qkv": Affine(attn.qkv, called=called)}
        rope = Rope(self, index)
        return Block(
            block,
            attn=Branch(opens=block.norm1, closes=block.drop_path1),
            mlp=Branch(opens=block.norm2, closes=block.drop_path2),
            affines={
                "norm1": Affine(block.norm1),
                **maps,
                "proj": Affine(attn.proj),
                **gate_affine(attn),
                "norm2": Affine(block.norm2),
                **mlp_affines(block.mlp),
            },
            dim=self.model.embed_dim,
            grid=self.model.patch_embed.grid_size,
            prefix=self.model.num_prefix_tokens,
            heads=attn.num_heads,
            attention=attn,
            cross=RotaryCross(attn, rope),
            rest=Rest(block.norm2, block.mlp, Gamma(block, "gamma_1"), Gamma(block, "gamma_2")),
            place=rope.place,
            extra=rope.arguments,
            counts_prefix=attn,
        )

    def embed(self, images: Tensor) -> Tensor:
        x, self.rotary = self.model._pos_embed(self.model.patch_embed(images))
        return self.model.norm_pre(x)

    def between(self, index: int, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x, pre_logits=True)


class Rope:
    """The rotary embedding of one block: shared by all, or its own where the model mixes axes."""

    def __init__(self, family: TimmEva, index: int) -> None:
        self.family, self.index = family, index

    def table(self) -> Tensor | None:
        table = self.family.rotary
        return table[self.index] if table is not None and self.family.model.rope_mixed else table

    def arguments(self) -> dict[str, Any]:
        return {"rope": self.table()}

    def place(self, count: int) -> None:
        self.family.model.blocks[self.index].attn.num_prefix_tokens += count


class Gamma:
    """The scale of a branch, a bare parameter of its block."""

    def __init__(self, block: Any, name: str) -> None:
        self.block, self.name = block, name

    def __call__(self, y: Tensor) -> Tensor:
        gamma = getattr(self.block, self.name)
        return y if gamma is None else gamma * y


class RotaryCross:
    """Attention of given queries over given context, whose patches are rotated to their places."""

    def __init__(self, attn: Any, rope: Rope) -> None:
        self.attn, self.rope = attn, rope

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attn, table = self.attn, self.rope.table()
        k, v = attn.k_norm(self._project(x, 1)), self._project(x, 2)
        if table is not None:
            prefix = k.shape[2] - table.shape[-2]  # of these tokens; the attention may know of further ones
            turned = apply_rot_embed_cat(k[:, :, prefix:], table, half=attn.rotate_half)
            k = torch.cat([k[:, :, :prefix], turned], dim=2).type_as(v)
        return k, v

    def read(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attn = self.attn
        y = attn.norm(attend(attn.q_norm(self._project(queries, 0)), k, v))
        if getattr(attn, "gate", None) is not None:
            y = y * attn.gate(queries).sigmoid()
        return attn.proj(y)

    def _project(self, x: Tensor, which: int) -> Tensor:
        attn = self.attn
        if attn.qkv is None:
            y = (attn.q_proj, attn.k_proj, attn.v_proj)[which](x)
        else:
            part = attn.qkv.weight.shape[0] // 3
            rows = slice(which * part, (which + 1) * part)
            bias = attn.qkv.bias
            if getattr(attn, "q_bias", None) is not None:
                bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            y = F.linear(x, attn.qkv.weight[rows], None if bias is None else bias[rows])
        return y.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)  # B heads N C/heads
