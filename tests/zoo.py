"""Tiny backbones of every family, and small settings of every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from vpeft.backbones import Backbone, wrap
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tuned import Tuned

TIMM = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
HF: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "intermediate_size": 64,
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm_vit": lambda: VisionTransformer(**TIMM),
    "timm_registers": lambda: VisionTransformer(
        **TIMM, reg_tokens=4, no_embed_class=True, init_values=0.1, qk_norm=True
    ),
    "timm_siglip": lambda: VisionTransformer(**TIMM, class_token=False, global_pool="map"),
    "timm_dinov3": lambda: Eva(
        **TIMM,
        num_reg_tokens=4,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        attn_type="rope",
        init_values=0.1,
        dynamic_img_size=True,
        use_fc_norm=False,
    ),
    "timm_swin": lambda: SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=0
    ),
    "open_clip": lambda: open_clip.transformer.VisionTransformer(
        image_size=64, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2, output_dim=16
    ),
    "hf_vit": lambda: ViTModel(ViTConfig(**HF), add_pooling_layer=False),
    "hf_dinov2": lambda: Dinov2Model(Dinov2Config(**HF)),
    "hf_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**HF, num_register_tokens=4)),
    "hf_clip": lambda: CLIPVisionModel(CLIPVisionConfig(**HF)),
    "hf_siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**HF)),
}

SPECS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "full": {"name": "full"},
    "bitfit": {"name": "bitfit"},
    "layernorm": {"name": "layernorm"},
    "partial": {"name": "partial"},
    "vpt_shallow": {"name": "vpt", "prompts": 3, "deep": False},
    "vpt_deep": {"name": "vpt", "prompts": 3},
    "vpt_project": {"name": "vpt", "prompts": 3, "project": 8},
    "lora_qv": {"name": "lora", "rank": 4},
    "lora_all": {"name": "lora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "lora_shared": {"name": "lora", "rank": 4, "targets": ["qkv"], "shared_a": True, "dropout": 0.1},
    "adaptformer": {"name": "adaptformer", "bottleneck": 8},
    "adaptformer_norm": {"name": "adaptformer", "bottleneck": 8, "pre_norm": True},
}

REFUSED = {("timm_swin", method): "within windows" for method in ("vpt_shallow", "vpt_deep", "vpt_project")}
REFUSED["open_clip", "lora_shared"] = "reads 'qkv' as a tensor"

PAIRS = [(b, m) for b in MODELS for m in SPECS if (b, m) not in REFUSED]


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def backbone(name: str, seed: int = 0) -> Backbone:
    """A tiny backbone whose weights are far from their initial values, norms and biases too."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return wrap(model, name)


def tuned(name: str, *methods: str, classes: int = 3, **options: Any) -> Tuned:
    body = backbone(name)
    torch.manual_seed(1)
    return Tuned(body, build([SPECS[m] for m in methods], body), LinearHead(body.dim, classes), **options).eval()


def shake(model: Tuned, std: float = 0.1) -> Tuned:
    """Randomise everything that learns, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model
