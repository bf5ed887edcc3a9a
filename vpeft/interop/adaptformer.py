"""AdaptFormer's checkpoints (ShoufaChen/AdaptFormer @ 6967d67, MIT): the whole model under `model`.

    blocks.0.adaptmlp.down_proj.weight [r d]  .bias     .up_proj.weight [d r]  .bias        the adapter
    blocks.0.attn.q_proj .k_proj .v_proj .proj  blocks.0.fc1 .fc2  norm1 norm2             else timm's names
    head.0.running_mean  .running_var     head.1.weight  .bias                             BatchNorm, then linear

The scale is in no file; 0.1 in all official image runs. Prompts that the repository can add (`embeddings.*`) are not
read. Images of the official data sets were cropped, and normalised as the weights that training began with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vpeft.backbones import Backbone
from vpeft.interop.layout import PLAIN_HEAD, Layout, Names, Tensors, places, shape

_BATCH_NORM_HEAD = {
    "linear.weight": "head.1.weight",
    "linear.bias": "head.1.bias",
    "norm.running_mean": "head.0.running_mean",
    "norm.running_var": "head.0.running_var",
    "norm.num_batches_tracked": "head.0.num_batches_tracked",
}


def options(tensors: Tensors, backbone: Backbone) -> dict[str, Any]:
    return {"bottleneck": shape(tensors, "blocks.0.adaptmlp.down_proj.weight")[0]}


def names(backbone: Backbone, options: Mapping[str, Any]) -> Names:
    return {
        f"adapters.{i}.{linear}.{part}": (f"{place}.adaptmlp.{linear}_proj.{part}",)
        for i, place in enumerate(places(backbone))
        for linear in ("down", "up")
        for part in ("weight", "bias")
    }


def in_file(name: str) -> tuple[str, ...]:
    if found := re.match(r"(.*\.attn)\.qkv\.(\w+)$", name):
        return tuple(f"{found[1]}.{role}_proj.{found[2]}" for role in "qkv")
    return (name.replace(".mlp.fc", ".fc"),)


LAYOUT = Layout(
    repository="ShoufaChen/AdaptFormer @ 6967d67",
    marks=r"adaptmlp|^embeddings\.|^fc_norm\.",
    options=options,
    names=names,
    backbone=in_file,
    heads=(_BATCH_NORM_HEAD, PLAIN_HEAD),
    normalization="auto",
    resize="crop",
)
