"""FacT's checkpoints (JieShibo/PETL-ViT @ 026e4f1, MIT): the change and the head, and nothing of the backbone.

    FacTu.weight [r d]  FacTv.weight [d r]                                            both
    blocks.0.attn.q_FacTs.weight [r r]  k_ v_ proj_    blocks.0.mlp.fc1_FacTs.weight [4r r]  fc2_ [r 4r]      FacT-TT
    FacTp [r 12L]  FacTc [r r r]                                                      FacT-TK
    head.weight  head.bias

The columns of FacTp go block by block: q, k, v, proj, four of fc1, four of fc2, as here. The scale is in no file; it is
`scale` of configs/tt/TASK.yaml or configs/tk/TASK.yaml there, where 0.01, 0.1, 1, 10 and 100 occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpeft.backbones import Backbone
from vpeft.interop.layout import Layout, Names, Tensors, places, shape

_REPOSITORY = "JieShibo/PETL-ViT @ 026e4f1"
_TRAIN = (
    ("attn.q_FacTs", "attn.k_FacTs", "attn.v_FacTs"),
    ("attn.proj_FacTs",),
    ("mlp.fc1_FacTs",),
    ("mlp.fc2_FacTs",),
)


def options(tensors: Tensors, backbone: Backbone) -> dict[str, Any]:
    return {"rank": shape(tensors, "FacTu.weight")[0]}


def train_names(backbone: Backbone, options: Mapping[str, Any]) -> Names:
    maps = [(place, roles) for place in places(backbone) for roles in _TRAIN]
    cores = {
        f"updates.{i}.core.s": tuple(f"{place}.{role}.weight" for role in roles)
        for i, (place, roles) in enumerate(maps)
    }
    return _factors(backbone) | cores


def tucker_names(backbone: Backbone, options: Mapping[str, Any]) -> Names:
    return _factors(backbone) | {f"tensors.{backbone.dim}.{part}": (f"FacT{part}",) for part in "cp"}


def _factors(backbone: Backbone) -> Names:
    return {f"factors.{backbone.dim}.{part}": (f"FacT{part}.weight",) for part in "uv"}


def _needed(form: str) -> dict[str, str]:
    return {"scale": f"it is `scale` in configs/{form}/TASK.yaml of {_REPOSITORY}"}


TRAIN = Layout(_REPOSITORY, "FacT", options, train_names, needed=_needed("tt"))
TUCKER = Layout(_REPOSITORY, "FacT", options, tucker_names, needed=_needed("tk"))
