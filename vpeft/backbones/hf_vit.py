"""Vision towers of transformers: ViT, DINOv2 (with registers), CLIP and SigLIP.

Features are what each model calls its pooled output before any classifier or projection: the
class token after the last norm, or SigLIP's attention-pooled token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vpeft.attention import Rest, attend
from vpeft.backbones.refusal import refuse_block
from vpeft.seams import Affine, Block, Branch

# model_type -> where a layer keeps its parts: norm1, attention, what closes it, norm2, mlp, what closes it
_LAYER = {
    "vit": ("layernorm_before", "attention", "attention", "layernorm_after", "mlp", "mlp"),
    "dinov2": ("norm1", "attention", "layer_scale1", "norm2", "mlp", "layer_scale2"),
    "clip": ("layer_norm1", "self_attn", "self_attn", "layer_norm2", "mlp", "mlp"),
}
_LAYER["dinov2_with_registers"] = _LAYER["dinov2"]
_LAYER["clip_vision_model"] = _LAYER["siglip_vision_model"] = _LAYER["clip"]


class HFViT:
    unused: tuple[str, ...] = ()

    def __init__(self, model: Any) -> None:
        kind = model.config.model_type
        if kind not in _LAYER:
            raise TypeError(f"transformers' '{kind}' is not a supported vision tower; known are {', '.join(_LAYER)}.")
        self.model = model
        self.kind = kind
        self.norm: nn.Module = model.post_layernorm if hasattr(model, "post_layernorm") else model.layernorm
        self.affines = {"patch_embed": _patch_affine(model), "norm": Affine(self.norm)}
        if hasattr(model, "pre_layrnorm"):
            self.affines["norm_pre"] = Affine(model.pre_layrnorm)
        if getattr(model.embeddings, "mask_token", None) is not None:
            self.unused += ("embeddings.mask_token",)
        if getattr(model, "pooler", None) is not None:
            self.unused += tuple(f"pooler.{name}" for name, _ in model.pooler.named_parameters())
        self.grid = grid_of(model)
        self.blocks = [self._block(layer) for layer in layers_of(model)]

    def _block(self, layer: Any) -> Block:
        names = _LAYER[self.kind]
        if not all(hasattr(layer, name) for name in names):
            raise refuse_block(layer)
        norm1, attn, closes1, norm2, mlp, closes2 = (getattr(layer, name) for name in names)
        proj = attn.o_proj if hasattr(attn, "o_proj") else attn.out_proj
        return Block(
            layer,
            attn=Branch(opens=norm1, closes=closes1),
            mlp=Branch(opens=norm2, closes=closes2),
            affines={
                "norm1": Affine(norm1),
                "q": Affine(attn.q_proj),
                "k": Affine(attn.k_proj),
                "v": Affine(attn.v_proj),
                "proj": Affine(proj),
                "norm2": Affine(norm2),
                **_mlp_affines(mlp),
            },
            dim=self.model.config.hidden_size,
            grid=self.grid,
            prefix=prefix_of(self.model),
            heads=self.model.config.num_attention_heads,
            attention=attn,
            cross=Cross(attn, proj),
            rest=Rest(norm2, mlp, _scale(layer, "layer_scale1"), _scale(layer, "layer_scale2")),
            extra=no_mask if self.kind in ("clip", "clip_vision_model", "siglip_vision_model") else None,
        )

    def embed(self, images: Tensor) -> Tensor:
        x = self.model.embeddings(images)
        return self.model.pre_layrnorm(x) if hasattr(self.model, "pre_layrnorm") else x

    def between(self, index: int, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        return self.model.head(x) if getattr(self.model, "use_head", False) else x[:, 0]


def _scale(layer: Any, name: str) -> Callable[[Tensor], Tensor]:
    return (getattr(layer, name) if hasattr(layer, name) else nn.Identity()).forward


def no_mask() -> dict[str, Any]:
    """Layers of CLIP and SigLIP ask for an attention mask without a default."""
    return {"attention_mask": None}


def layers_of(model: Any) -> Any:
    """The model's list of layers, wherever this version of transformers keeps it."""
    holder = model.encoder if hasattr(model, "encoder") else model
    return holder.layers if hasattr(holder, "layers") else holder.layer


def grid_of(model: Any) -> tuple[int, int]:
    """Patch grid of the images the model is set to."""
    size, patch = model.config.image_size, model.config.patch_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height // patch, width // patch


def prefix_of(model: Any) -> int:
    if model.config.model_type == "siglip_vision_model":
        return 0
    return 1 + getattr(model.config, "num_register_tokens", 0)


def _patch_affine(model: Any) -> Affine:
    """The patch embedding; CLIP's has no bias, and its position embedding takes a shift."""
    embeddings = model.embeddings
    if not hasattr(embeddings, "patch_embedding"):
        return Affine(embeddings.patch_embeddings.projection, channels=1)
    table = embeddings.position_embedding, "weight", prefix_of(model)
    return Affine(embeddings.patch_embedding, channels=1, absorbs=table)


def _mlp_affines(mlp: Any) -> dict[str, Affine]:
    if hasattr(mlp, "gate_proj"):  # DINOv2's SwiGLU
        return {"fc1_g": Affine(mlp.gate_proj), "fc1_x": Affine(mlp.up_proj), "fc2": Affine(mlp.down_proj)}
    return {"fc1": Affine(mlp.fc1), "fc2": Affine(mlp.fc2)}


class Cross:
    """Attention of given queries over given context, through separate projections."""

    def __init__(self, attn: Any, proj: nn.Module) -> None:
        self.attn, self.proj = attn, proj

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.attn.k_proj(x)), self._heads(self.attn.v_proj(x))

    def read(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.proj(attend(self._heads(self.attn.q_proj(queries)), k, v))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.attn.head_dim)).transpose(1, 2)  # B heads N C/heads
