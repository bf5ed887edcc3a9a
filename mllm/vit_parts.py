"""A plain ViT of timm by its parts, with what was trained in it written into them.

Shapes: N patches, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.tuned import Tuned

_ACTS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}


def parts_of(vision: Tuned) -> Parts:
    """The parts of a tower.

    Raises:
        ValueError: It is no plain ViT of timm, or a method in it is no change of weights.
    """
    from timm.models.vision_transformer import VisionTransformer

    model = vision.backbone.model
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{vision.backbone.name} is a {type(model).__name__}, which is neither a tower of transformers nor a plain "
            "ViT of timm, so no container of transformers can hold it."
        )
    return Parts(vision)


class Parts:
    """A plain ViT of timm, by its parts.

    Raises:
        ValueError: It has something that no tower of transformers has.
    """

    def __init__(self, vision: Tuned) -> None:
        backbone = vision.backbone
        model: Any = backbone.model
        self.cls: bool = model.cls_token is not None
        self.registers: int = model.num_reg_tokens
        self.pre = not isinstance(model.norm_pre, nn.Identity)
        self.image_size, block = backbone.image_size, model.blocks[0]
        if why := self._misfit(model):
            raise ValueError(f"No tower of transformers computes what {backbone.name} does: {why}.")
        self.state = {name: tensor.float() for name, tensor in vision.merge().items()}
        self.width: int = model.embed_dim
        self.depth = len(model.blocks)
        self.heads, self.hidden = block.attn.num_heads, block.mlp.fc1.out_features
        self.patch_size, self.act, self.eps = model.patch_embed.patch_size[0], _act(block.mlp.act), block.norm1.eps
        bias = self.state.get("patch_embed.proj.bias")
        self.patch = self.state["patch_embed.proj.weight"], torch.zeros(self.width) if bias is None else bias
        table = self.state["pos_embed"]  # 1 P+N D
        missing = model.num_prefix_tokens if model.no_embed_class else 0
        self.positions = torch.cat([table.new_zeros(1, missing, self.width), table], dim=1)
        self.cls_token = self.state.get("cls_token", table.new_zeros(1, 1, self.width))  # 1 1 D

    def _misfit(self, model: Any) -> str | None:
        block = model.blocks[0]
        attn, mlp = block.attn, block.mlp
        if self.image_size[0] != self.image_size[1]:
            return f"it takes images of {self.image_size[0]} x {self.image_size[1]}, and theirs are square"
        if type(mlp).__name__ != "Mlp" or _act(mlp.act) is None:
            return f"its MLPs are {type(mlp).__name__} with {type(mlp.act).__name__}"
        inside = (attn.q_norm, attn.k_norm, attn.norm, mlp.norm, model.patch_embed.norm)
        if any(not isinstance(one, nn.Identity) for one in inside) or getattr(attn, "gate", None) is not None:
            return "it has norms or gates inside its attention, its MLPs or its patch embedding"
        if not isinstance(block.norm1, nn.LayerNorm):
            return f"its norms are {type(block.norm1).__name__}"
        if model.pos_embed is None:
            return "it has no table of positions"
        if self.registers and (self.pre or not self.cls):
            return "it has registers without a class token, or with a norm before its blocks"
        return None

    def sizes(self, depth: int | None = None) -> dict[str, Any]:
        """What the configs of all containers call by one name."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.depth if depth is None else depth,
            "num_attention_heads": self.heads,
            "image_size": self.image_size[0],
            "patch_size": self.patch_size,
            "hidden_act": self.act,
            "layer_norm_eps": self.eps,
        }

    def blocks(self, stem: str, places: Mapping[str, str], depth: int | None = None) -> dict[str, Tensor]:
        """The tensors of the blocks, under a container's names."""
        return {
            f"{stem}.{i}.{places[name]}.{kind}": tensor
            for i in range(self.depth if depth is None else depth)
            for (name, kind), tensor in self._block(i).items()
            if name in places
        }

    def _block(self, index: int) -> dict[tuple[str, str], Tensor]:
        found: dict[tuple[str, str], Tensor] = {}
        for name, place in {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "fc1": "mlp.fc1"}.items():
            found |= {(name, kind): self._get(f"blocks.{index}.{place}", kind) for kind in ("weight", "bias")}
        for name, place, scale in (("proj", "attn.proj", "ls1"), ("fc2", "mlp.fc2", "ls2")):
            gamma = self.state.get(f"blocks.{index}.{scale}.gamma", torch.ones(self.width))
            found[name, "weight"] = self._get(f"blocks.{index}.{place}", "weight") * gamma[:, None]
            found[name, "bias"] = self._get(f"blocks.{index}.{place}", "bias") * gamma
        for kind in ("weight", "bias"):
            found |= dict(zip(((part, kind) for part in "qkv"), found["qkv", kind].chunk(3), strict=True))
        return found

    def _get(self, stem: str, kind: str) -> Tensor:
        weight = self.state[f"{stem}.weight"]
        if kind == "weight":
            return weight
        return self.state[f"{stem}.bias"] if f"{stem}.bias" in self.state else weight.new_zeros(len(weight))


def _act(module: nn.Module) -> str | None:
    """What transformers calls an activation; None is one that is not known."""
    tanh = getattr(module, "approximate", "none") == "tanh"
    return _ACTS["GELUTanh"] if tanh else _ACTS.get(type(module).__name__)
