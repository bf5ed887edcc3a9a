"""A vision tower as transformers' containers hold one, with what was trained in it written into the weights.

Towers of transformers stay what they are. A ViT of timm becomes the class of transformers that computes the same:

    class token                             Dinov2Model, or Blip2VisionModel
    class token, norm before the blocks     CLIPVisionModel
    class token and registers               Dinov2WithRegistersModel
    neither                                 SiglipVisionModel

Layer scales are multiplied into the maps before them.

Shapes: N patches, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mllm.vision import Tokens
from mllm.vit_parts import Parts, parts_of
from vpeft.tuned import Tuned

_TRANSFORMERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers", "vit")
_CLIP = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_DINO = {
    "norm1": "norm1",
    **{name: f"attention.{name}_proj" for name in ("q", "k", "v")},
    "proj": "attention.o_proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_BLIP = {name: place for name, place in _CLIP.items() if len(name) > 1} | {
    "qkv": "self_attn.qkv",
    "proj": "self_attn.projection",
}


@dataclass(frozen=True)
class Tower:
    """A tower of transformers, and how LLaVA's container reads it.

    Args:
        model: With its config.
        layer: `vision_feature_layer`.
        strategy: `vision_feature_select_strategy`; `default` drops the first token.
    """

    model: Any
    layer: int
    strategy: Literal["default", "full"]


def llava_tower(vision: Tuned) -> Tower:
    """The tower for LlavaForConditionalGeneration.

    Raises:
        ValueError: The container has no place for such a tower, or a method in it is no change of weights; says why.
    """
    model = _of_transformers(vision) if _is_of_transformers(vision) else _of_timm(vision)
    neck, last = _neck(vision), vision.backbone.blocks[-1]
    if neck.prefix == 0 and last.prefix > 1:
        raise ValueError(
            f"LLaVA's container drops the first token of a tower and no other, and {vision.backbone.name} has a class "
            f"token and {last.prefix - 1} registers, of which none is read here. Train with vision.prefix true."
        )
    if neck.norm:
        raise ValueError(
            "LLaVA's container reads what leaves a block as it is, and vision.norm puts the tower's last norm behind "
            "it. Train with vision.norm false."
        )
    # Their hidden states begin with what enters the first block.
    layer = len(vision.backbone.blocks) - 1 - model.config.num_hidden_layers
    return Tower(model.eval(), layer, "default" if last.prefix and not neck.prefix else "full")


def blip2_tower(vision: Tuned, norm: nn.LayerNorm) -> Any:
    """The tower for Blip2ForConditionalGeneration: a Blip2VisionModel that ends in the connector's norm.

    Raises:
        ValueError: The container has no place for such a tower, or a method in it is no change of weights; says why.
    """
    from transformers import Blip2VisionConfig, Blip2VisionModel

    parts = _blip2_parts(vision)
    depth = len(vision.backbone.blocks)
    config = Blip2VisionConfig(**parts.sizes(depth), qkv_bias=True)
    state = {
        "embeddings.class_embedding": parts.cls_token,
        "embeddings.position_embedding": parts.positions,
        "embeddings.patch_embedding.weight": parts.patch[0],
        "embeddings.patch_embedding.bias": parts.patch[1],
        "post_layernorm.weight": norm.weight,
        "post_layernorm.bias": norm.bias,
        **parts.blocks("encoder.layers", _BLIP, depth),
    }
    return _loaded(Blip2VisionModel(config), state).eval()


def _blip2_parts(vision: Tuned) -> Parts:
    neck, name = _neck(vision), vision.backbone.name
    if neck.norm:
        raise ValueError(
            "BLIP-2's container has one norm behind the last block, the Q-Former's own, and vision.norm puts the "
            "tower's before it. Train with vision.norm false."
        )
    if _is_of_transformers(vision):
        raise ValueError(
            f"BLIP-2's container has a tower of its own, into which ViTs of timm can be written, and {name} is one of "
            "transformers."
        )
    parts = parts_of(vision)
    if parts.registers or not parts.cls or not neck.prefix:
        raise ValueError(
            "the Q-Former of BLIP-2's container reads a class token and the patches, and this one reads "
            f"{neck.prefix or 'no'} tokens before them. Use a tower with a class token, with vision.prefix true."
        )
    if parts.pre:
        raise ValueError(f"BLIP-2's container has no norm before its blocks, and {name}, a CLIP, has one.")
    return parts


def _of_timm(vision: Tuned) -> Any:
    import transformers as hf

    parts = parts_of(vision)
    kind: Any
    # The container reads no last norm; one that is not there is one that does nothing.
    nothing = {"weight": torch.ones(parts.width), "bias": torch.zeros(parts.width)}
    norm = "norm" if "norm.weight" in parts.state else "fc_norm"
    ends = {name: parts.state.get(f"{norm}.{name}", tensor) for name, tensor in nothing.items()}
    weight, bias = parts.patch
    if parts.pre or not parts.cls:
        kind = (hf.CLIPVisionConfig, hf.CLIPVisionModel) if parts.cls else (hf.SiglipVisionConfig, hf.SiglipVisionModel)
        options: dict[str, Any] = {} if parts.cls else {"vision_use_head": False}
        table = parts.positions[0].clone()
        state = {f"post_layernorm.{name}": tensor for name, tensor in ends.items()}
        if parts.cls:
            table[1:] += bias  # CLIP's patch embedding has none
            state["embeddings.class_embedding"] = parts.cls_token.flatten()
            state |= {f"pre_layrnorm.{name}": parts.state[f"norm_pre.{name}"] for name in ("weight", "bias")}
        else:
            state["embeddings.patch_embedding.bias"] = bias
        state["embeddings.position_embedding.weight"] = table
        state["embeddings.patch_embedding.weight"] = weight
        return _loaded(kind[1](kind[0](**parts.sizes(), **options)), state | parts.blocks("encoder.layers", _CLIP))
    ratio, rest = divmod(parts.hidden, parts.width)
    if rest:
        raise ValueError(
            f"DINOv2's class in transformers has MLPs a whole number of times as wide as its tokens, and those of "
            f"{vision.backbone.name} are {parts.hidden} for {parts.width}."
        )
    sizes = {name: value for name, value in parts.sizes().items() if name != "intermediate_size"}
    first = parts.positions[:, : 1 + parts.registers]
    state = {
        "embeddings.cls_token": parts.cls_token,
        "embeddings.mask_token": torch.zeros(1, parts.width),
        "embeddings.position_embeddings": torch.cat([first[:, :1], parts.positions[:, 1 + parts.registers :]], dim=1),
        "embeddings.patch_embeddings.projection.weight": weight,
        "embeddings.patch_embeddings.projection.bias": bias,
        **{f"layernorm.{name}": tensor for name, tensor in ends.items()},
        **parts.blocks("encoder.layer", _DINO),
    }
    for i in range(parts.depth):
        state |= {f"encoder.layer.{i}.layer_scale{k}.lambda1": torch.ones(parts.width) for k in (1, 2)}
    if not parts.registers:
        return _loaded(hf.Dinov2Model(hf.Dinov2Config(**sizes, mlp_ratio=ratio)), state)
    state["embeddings.register_tokens"] = parts.state["reg_token"] + first[:, 1:]
    config = hf.Dinov2WithRegistersConfig(**sizes, mlp_ratio=ratio, num_register_tokens=parts.registers)
    return _loaded(hf.Dinov2WithRegistersModel(config), state)


def _of_transformers(vision: Tuned) -> Any:
    from transformers import AutoModel

    model = AutoModel.from_config(vision.backbone.model.config)
    state = {name: tensor.float() for name, tensor in vision.merge().items()}
    # A ViT's pooler is left out here and made by AutoModel; nothing reads it.
    unread = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("pooler.")}
    return _loaded(model, unread | state)


def _is_of_transformers(vision: Tuned) -> bool:
    return getattr(getattr(vision.backbone.model, "config", None), "model_type", None) in _TRANSFORMERS


def _loaded(model: Any, state: Mapping[str, Tensor]) -> Any:
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return model.float()


def _neck(vision: Tuned) -> Tokens:
    assert isinstance(vision.neck, Tokens)  # mllm.vision.tower makes no other
    return vision.neck
