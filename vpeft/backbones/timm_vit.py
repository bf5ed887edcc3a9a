"""timm's VisionTransformer: ViT, DeiT, DINO, DINOv2, CLIP and SigLIP towers, with or without registers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpeft.attention import Rest, attend
from vpeft.backbones.refusal import refuse_block
from vpeft.seams import Affine, Block, Branch


class TimmViT:
    def __init__(self, model: VisionTransformer) -> None:
        self.model: Any = model
        self.norm, self.affines, self.unused = outer_parts(self.model)
        self.blocks = [self._block(block) for block in self.model.blocks]

    def _block(self, block: Any) -> Block:
        if type(block) is not ViTBlock:
            raise refuse_block(block)
        attn: Any = block.attn
        return Block(
            block,
            attn=Branch(opens=block.norm1, closes=block.drop_path1),
            mlp=Branch(opens=block.norm2, closes=block.drop_path2),
            affines={
                "norm1": Affine(block.norm1),
                "qkv": Affine(attn.qkv),
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
            cross=FusedCross(attn),
            rest=Rest(block.norm2, block.mlp, block.ls1.forward, block.ls2.forward),
        )

    def embed(self, images: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(images))
        return self.model.norm_pre(self.model.patch_drop(x))

    def between(self, index: int, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x, pre_logits=True)


def outer_parts(model: Any) -> tuple[nn.Module, dict[str, Affine], tuple[str, ...]]:
    """Of a timm ViT: its last norm, the affine maps outside its blocks, and the parameters features never see."""
    norm = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
    maps = {"norm_pre": model.norm_pre, "norm": norm}
    affines = {role: Affine(module) for role, module in maps.items() if not isinstance(module, nn.Identity)}
    unused = tuple(f"head.{name}" for name, _ in model.head.named_parameters())
    return norm, {"patch_embed": patch_affine(model), **affines}, unused


def patch_affine(model: Any) -> Affine:
    """The patch embedding; where it has no bias, the position embedding takes a shift."""
    table = None
    if model.pos_embed is not None and isinstance(model.patch_embed.norm, nn.Identity):
        table = model, "pos_embed", 0 if model.no_embed_class else model.num_prefix_tokens
    return Affine(model.patch_embed.proj, channels=1, absorbs=table)


def gate_affine(attn: Any) -> dict[str, Affine]:
    """What gates the output of an attention, where there is one: it reads what qkv reads."""
    return {} if getattr(attn, "gate", None) is None else {"gate": Affine(attn.gate)}


def mlp_affines(mlp: Any) -> dict[str, Affine]:
    """fc1 and fc2 of timm's MLPs; a SwiGLU keeps its gate apart (fc1_g, fc1_x)."""
    names = [name for name in ("fc1", "fc1_g", "fc1_x", "fc2") if hasattr(mlp, name)]
    return {name: Affine(getattr(mlp, name)) for name in names}


class FusedCross:
    """Attention of given queries over given context, through a fused qkv."""

    def __init__(self, attn: Any) -> None:
        self.attn = attn

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attn = self.attn
        k, v = self._project(x, 1, 3).chunk(2, dim=-1)
        k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (k, v))  # B heads N C/heads
        return attn.k_norm(k), v

    def read(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attn = self.attn
        q = self._project(queries, 0, 1).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        y = attn.norm(attend(attn.q_norm(q), k, v))
        if getattr(attn, "gate", None) is not None:
            y = y * attn.gate(queries).sigmoid()
        return attn.proj(y)

    def _project(self, x: Tensor, first: int, end: int) -> Tensor:
        w, b = self.attn.qkv.weight, self.attn.qkv.bias
        part = w.shape[0] // 3
        rows = slice(first * part, end * part)
        return F.linear(x, w[rows], None if b is None else b[rows])
