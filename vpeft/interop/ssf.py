"""SSF's checkpoints (dongzelian/SSF @ e94e0e7, MIT): timm's whole model under `state_dict`, or `state_dict_ema`.

    ssf_scale_1 [d]  ssf_shift_1                                      after the last norm
    patch_embed.ssf_scale_1                  .ssf_scale_2             after the patch embedding, and Swin's norm of it
    blocks.0.ssf_scale_1  .ssf_scale_2                                after norm1 and norm2
    blocks.0.attn.ssf_scale_1 [3d]  .ssf_scale_2                      after qkv and proj
    blocks.0.mlp.ssf_scale_1 [h]  .ssf_scale_2                        after fc1 and fc2

In a Swin `layers.0.blocks.0` stands for `blocks.0`. Where both are in a file, the running average is read, as timm
does. Images were resized straight to their size for VTAB (`--direct-resize`) and cropped for FGVC, and normalised as
the timm model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpeft.backbones import Backbone
from vpeft.interop.layout import Layout, Names, Tensors, places, shape

_OUTSIDE = {"patch_embed": "patch_embed.ssf_{}_1", "norm_pre": "patch_embed.ssf_{}_2", "norm": "ssf_{}_1"}
_INSIDE = {
    "norm1": "ssf_{}_1",
    "qkv": "attn.ssf_{}_1",
    "proj": "attn.ssf_{}_2",
    "norm2": "ssf_{}_2",
    "fc1": "mlp.ssf_{}_1",
    "fc2": "mlp.ssf_{}_2",
}


def options(tensors: Tensors, backbone: Backbone) -> dict[str, Any]:
    shape(tensors, "ssf_scale_1")
    return {}


def names(backbone: Backbone, options: Mapping[str, Any]) -> Names:
    outside = [_OUTSIDE.get(role, role) for role in backbone.family.affines if not role.startswith("merging")]
    inside = [
        f"{place}.{_INSIDE.get(role, role)}"
        for place, block in zip(places(backbone), backbone.blocks, strict=True)
        for role in block.affines
    ]
    return {
        f"pairs.{i}.{ours}": (pattern.format(theirs),)
        for i, pattern in enumerate(outside + inside)
        for ours, theirs in (("gamma", "scale"), ("beta", "shift"))
    }


LAYOUT = Layout(
    repository="dongzelian/SSF @ e94e0e7",
    marks="ssf_",
    options=options,
    names=names,
    normalization="auto",
)
