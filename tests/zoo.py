"""Tiny backbones of every family, and small settings of every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from vpeft.methods import build, feature_dim
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
# Without windows: one sequence of tokens from the first block to the last.
PLAIN = [name for name in MODELS if name != "timm_swin"]


@dataclass(frozen=True)
class Case:
    """One setting of one method, and what is true of it on every backbone.

    Args:
        spec: The `method:` entry, small.
        row: Its row in the README's table.
        identity: It starts as the backbone.
        merges: It can be written into the backbone's weights.
        steps: Optimiser steps after which a gradient has reached everything.
        unseen: Pattern of parameters that no gradient reaches, and why, in a comment beside it.
        structural: It also runs the slower checks (compile, DDP, bf16, deepcopy, activation checkpointing).
    """

    spec: dict[str, Any]
    row: str
    identity: bool = True
    merges: bool = False
    steps: int = 2
    unseen: str = "(?!)"
    structural: bool = False


CASES: dict[str, Case] = {
    "linear": Case({"name": "linear"}, "linear", merges=True),
    "full": Case({"name": "full"}, "full", merges=True),
    "bitfit": Case({"name": "bitfit"}, "bitfit", merges=True),
    "layernorm": Case({"name": "layernorm"}, "layernorm", merges=True),
    "partial": Case({"name": "partial"}, "partial", merges=True),
    "vpt_shallow": Case({"name": "vpt", "prompts": 3, "deep": False}, "vpt", identity=False),
    "vpt_deep": Case({"name": "vpt", "prompts": 3}, "vpt", identity=False, structural=True),
    "vpt_project": Case({"name": "vpt", "prompts": 3, "project": 8}, "vpt with project", identity=False),
    "lora_qv": Case({"name": "lora", "rank": 4}, "lora", merges=True, structural=True),
    "lora_all": Case({"name": "lora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]}, "lora", merges=True),
    "lora_shared": Case(
        {"name": "lora", "rank": 4, "targets": ["qkv"], "shared_a": True, "dropout": 0.1},
        "lora with dropout",
        merges=True,
        structural=True,
    ),
    "lion": Case({"name": "lion", "rank": 4}, "lion", structural=True),
    "noah": Case({"name": "noah", "prompts": 3, "lora": 2, "adapter": 4}, "noah", identity=False, structural=True),
    "noah_subnet": Case(
        {"name": "noah", "prompts": 3, "lora": 0, "adapter": 4, "dropout": 0.0}, "noah without dropout", identity=False
    ),
    "lora_fa": Case({"name": "lora_fa", "rank": 4}, "lora_fa", merges=True, structural=True),
    "dora": Case({"name": "dora", "rank": 4}, "dora", merges=True, structural=True),
    "dora_all": Case({"name": "dora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]}, "dora", merges=True),
    "adalora": Case({"name": "adalora", "rank": 6, "target_rank": 4}, "adalora", merges=True, structural=True),
    "fishmask": Case({"name": "fishmask", "share": 0.02}, "fishmask", merges=True, structural=True),
    "bi_adapter": Case({"name": "bi_adapter", "bottleneck": 8}, "bi_adapter", identity=False, structural=True),
    "bi_adapter_4": Case({"name": "bi_adapter", "bottleneck": 8, "bits": 4}, "bi_adapter", identity=False),
    "adaptformer": Case({"name": "adaptformer", "bottleneck": 8}, "adaptformer", structural=True),
    "adaptformer_norm": Case({"name": "adaptformer", "bottleneck": 8, "pre_norm": True}, "adaptformer"),
    # Near the backbone at the start, and not it, unless `up` starts as zero.
    "houlsby": Case({"name": "houlsby", "bottleneck": 4}, "houlsby", identity=False, structural=True),
    "pfeiffer": Case({"name": "pfeiffer", "bottleneck": 4}, "pfeiffer", identity=False, structural=True),
    "pfeiffer_stream": Case(
        {"name": "pfeiffer", "bottleneck": 4, "reads": "stream", "norm": True, "init_std": 0.02},
        "pfeiffer",
        identity=False,
    ),
    "adapter_plus": Case({"name": "adapter_plus", "bottleneck": 4}, "adapter_plus", identity=False, structural=True),
    "adapter_plus_pre": Case(
        {"name": "adapter_plus", "bottleneck": 4, "position": "pre"}, "adapter_plus", identity=False
    ),
    # The last block's ReLUs see few tokens that matter, and may all be shut at one step.
    "parallel": Case({"name": "parallel", "bottleneck": 8, "attention": True}, "parallel", steps=3, structural=True),
    "parallel_stream": Case({"name": "parallel", "bottleneck": 8, "pre_norm": False}, "parallel", steps=3),
    "compacter": Case({"name": "compacter", "bottleneck": 8}, "compacter", identity=False, structural=True),
    "compacter_mlp": Case(
        {"name": "compacter", "bottleneck": 8, "products": 2, "rank": 2, "attention": False},
        "compacter",
        identity=False,
    ),
    "vp": Case({"name": "vp", "size": 5}, "vp", identity=False, structural=True),
    "vp_fixed_patch": Case({"name": "vp", "kind": "fixed_patch", "size": 9}, "vp", identity=False),
    "vp_random_patch": Case({"name": "vp", "kind": "random_patch", "size": 9}, "vp", identity=False),
    "vp_from_zero": Case({"name": "vp", "size": 5, "std": 0.0}, "vp"),
    "evp": Case({"name": "evp", "size": 5}, "evp", identity=False, structural=True),
    "ilm_vp": Case({"name": "ilm_vp", "inner": 49}, "ilm_vp", identity=False, structural=True),
    "ilm_vp_border": Case({"name": "ilm_vp", "kind": "border", "inner": 48}, "ilm_vp with border"),
    "dam_vp": Case({"name": "dam_vp", "prompts": 3, "size": 5}, "dam_vp", identity=False, structural=True),
    "convpass": Case({"name": "convpass", "bottleneck": 4}, "convpass", structural=True),
    "convpass_attn": Case(
        {"name": "convpass", "bottleneck": 4, "attention_only": True, "conv_init": "xavier"}, "convpass"
    ),
    "fact_tt": Case({"name": "fact_tt", "rank": 4, "dropout": 0.0}, "fact_tt", merges=True, structural=True),
    "fact_tt_dropout": Case({"name": "fact_tt", "rank": 4}, "fact_tt with dropout", merges=True),
    "fact_tk": Case({"name": "fact_tk", "rank": 4, "dropout": 0.0}, "fact_tk", merges=True, structural=True),
    "fact_tk_dropout": Case({"name": "fact_tk", "rank": 4}, "fact_tk with dropout", merges=True),
    # The official start is near the backbone and not the backbone; init_std 0 is the paper's text.
    "ssf": Case({"name": "ssf"}, "ssf", identity=False, merges=True, structural=True),
    "ssf_identity": Case({"name": "ssf", "init_std": 0.0}, "ssf", merges=True),
    "ia3": Case({"name": "ia3"}, "ia3", merges=True, structural=True),
    "difffit": Case({"name": "difffit"}, "difffit", merges=True, structural=True),
    "rein": Case({"name": "rein", "tokens": 5, "rank": 3}, "rein", identity=False, structural=True),
    "rein_full": Case({"name": "rein", "tokens": 5, "rank": None}, "rein", identity=False),
    "repadapter": Case({"name": "repadapter", "bottleneck": 4}, "repadapter", merges=True, structural=True),
    "repadapter_attn": Case(
        {"name": "repadapter", "bottleneck": 4, "groups": 1, "mlp": False}, "repadapter", merges=True
    ),
    "krona": Case({"name": "krona"}, "krona", merges=True, structural=True),
    "krona_all": Case(
        {"name": "krona", "targets": ["qkv", "proj", "fc1", "fc2"], "factor": 2, "scale": 0.5}, "krona", merges=True
    ),
    "vqt": Case({"name": "vqt", "queries": 2, "dropout": 0.0}, "vqt", identity=False, structural=True),
    "vqt_weighted": Case({"name": "vqt", "queries": 2, "weighted": True}, "vqt", identity=False),
    "dtl": Case({"name": "dtl", "first": 1}, "dtl", identity=False, structural=True),
    "dtl_own": Case({"name": "dtl", "first": 0, "pool": "own"}, "dtl"),
    "dtl_plus": Case({"name": "dtl", "first": 0, "kernel": 3}, "dtl", identity=False, structural=True),
    "lst": Case({"name": "lst"}, "lst", identity=False, structural=True),
    "lst_residual": Case({"name": "lst", "residual": True, "init": "random"}, "lst", identity=False),
    "mtlora": Case({"name": "mtlora", "rank": 4, "dropout": 0.0}, "mtlora", merges=True, structural=True),
    "mtlora_dropout": Case({"name": "mtlora", "rank": 4}, "mtlora with dropout", merges=True),
    "polyhistor": Case({"name": "polyhistor", "ratio": 4, "rank": 3, "embedding": 8}, "polyhistor", structural=True),
    "polyhistor_lite": Case(
        {"name": "polyhistor", "lite": True, "ratio": 4, "rank": 3, "embedding": 8}, "polyhistor", structural=True
    ),
    "prefix": Case({"name": "prefix", "prefixes": 3}, "prefix", identity=False, structural=True),
    "lorand": Case({"name": "lorand", "kernel": 4}, "lorand", identity=False, structural=True),
    "lorand_paper": Case(
        {"name": "lorand", "branches": 2, "kernel": 4, "shared_kernel": True, "zero_init": True}, "lorand"
    ),
    "mona": Case({"name": "mona", "bottleneck": 8}, "mona", identity=False, structural=True),
    "mona_zero": Case({"name": "mona", "bottleneck": 8, "zero_init": True}, "mona"),
}

# (backbone, case) -> what the refusal says
REFUSED: dict[tuple[str, str], str] = {
    ("timm_swin", "vqt"): "within windows",
    ("timm_swin", "vqt_weighted"): "within windows",
    ("timm_swin", "rein"): "grows wider from stage to stage",
    ("timm_swin", "rein_full"): "grows wider from stage to stage",
    ("timm_swin", "vpt_project"): "grows wider from stage to stage",
    ("open_clip", "lora_shared"): "reads 'qkv' as a tensor",
    ("open_clip", "fact_tt_dropout"): "reads its projections as tensors",
    ("open_clip", "fact_tk_dropout"): "reads its projections as tensors",
    ("open_clip", "mtlora_dropout"): "reads 'qkv' as a tensor",
    ("open_clip", "noah"): "reads 'qkv' as a tensor",
}

PAIRS = [(b, m) for b in MODELS for m in CASES if (b, m) not in REFUSED]


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
    built = build([CASES[m].spec for m in methods], body)
    return Tuned(body, built, LinearHead(feature_dim(body, built), classes), **options).eval()


def shake(model: Tuned, std: float = 0.1) -> Tuned:
    """Randomise everything that learns, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model
