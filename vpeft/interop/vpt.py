"""VPT's checkpoints (KMnP/vpt @ 4410440, CC-BY-NC-4.0; names and shapes only).

    shallow_prompt [1 P d]  deep_prompt [L-1 P d]           prompt_epN.pth, numpy arrays, and no head
    enc.transformer.prompt_embeddings [1 P d]               a state dict, as fvcore's Checkpointer saves it (`model`);
    enc.transformer.deep_prompt_embeddings [L-1 P d]            the released code has that line commented out
    enc.transformer.prompt_proj.weight  .bias
    enc.prompt_embeddings  enc.deep_prompt_embeddings_0 ... _3      Swin: the first prompt apart, then one a stage
    head.last_layer.weight  .bias

prompt_epN.pth lacks a projection, so a run with one cannot be read from it. MAE's official model averages prompts with
the patches, which ours leaves out: a backbone that pools its patches is refused. A head of several layers is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vpeft.backbones import Backbone
from vpeft.interop.layout import Layout, Names, Tensors, shape, timm_name

_PARTS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "encoder.encoder_norm",
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.proj": "attn.out",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
}


def options(tensors: Tensors, backbone: Backbone) -> dict[str, Any]:
    if not backbone.windowed and getattr(backbone.model, "global_pool", "token") == "avg":
        raise ValueError(
            f"cannot act here as it was trained: {backbone.name} averages its patches; official models that do so "
            "average the prompts too, and the others read the class token. Take a backbone that reads the class token"
        )
    _, prompts, width = shape(tensors, "prompt_embeddings")
    projected = "prompt_proj.weight" in tensors
    deep = any(name.startswith("deep_prompt_embeddings") for name in tensors)
    return {"prompts": prompts, "deep": deep, "project": width if projected else None}


def names(backbone: Backbone, options: Mapping[str, Any]) -> Names:
    project = {f"project.{part}": (f"prompt_proj.{part}",) for part in ("weight", "bias")}
    rest = project if options["project"] else {}
    if not options["deep"]:
        return {"prompts.0": ("prompt_embeddings",), **rest}
    if not backbone.windowed:
        return {"prompts.0": ("prompt_embeddings", "deep_prompt_embeddings"), **rest}
    stages = len(dict.fromkeys(block.dim for block in backbone.blocks))
    later = {f"prompts.{i}": (f"deep_prompt_embeddings_{i}",) for i in range(1, stages)}
    return {"prompts.0": ("prompt_embeddings", "deep_prompt_embeddings_0"), **later}


def in_file(name: str) -> tuple[str, ...]:
    """A tensor of timm's ViT in the ViT of that repository; Swin's names are timm's."""
    if name.startswith("layers."):
        return timm_name(name)
    found = re.match(r"blocks\.(\d+)\.(.*)\.(\w+)$", name)
    if found is None:
        stem, _, part = name.rpartition(".")
        return (_PARTS.get(name) or f"{_PARTS.get(stem, stem)}.{part}",)
    index, stem, part = found.groups()
    roles = ("attn.query", "attn.key", "attn.value") if stem == "attn.qkv" else (_PARTS.get(stem, stem),)
    return tuple(f"encoder.layer.{index}.{role}.{part}" for role in roles)


def plain(name: str) -> str:
    name = re.sub(r"^(enc\.)?(transformer\.)?", "", name)
    return {"shallow_prompt": "prompt_embeddings", "deep_prompt": "deep_prompt_embeddings"}.get(name, name)


LAYOUT = Layout(
    repository="KMnP/vpt @ 4410440",
    marks=r"prompt|^head\.projection|^fc_norm\.",
    options=options,
    names=names,
    backbone=in_file,
    heads=({"linear.weight": "head.last_layer.weight", "linear.bias": "head.last_layer.bias"},),
    interpolation="bilinear",
    plain=plain,
)
