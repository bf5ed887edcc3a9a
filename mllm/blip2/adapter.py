"""The adapter of a first stage: one safetensors file with exactly what was trained, and what it takes to use it.

Tensors are `Blip2.delta()`: `vision.*` what methods learned in the tower (packed where a method packs), `connector.*`
the Q-Former, the norm before it and its heads. The header's metadata holds a JSON manifest under `blip2`:

    format, vpeft              format number and version of the package that wrote it
    seed                       of random weights
    backbone                   name, pretrained, image_size, layer, prefix, norm, normalization, weights {source, ...}
    method                     method entry of the tower, or list of such
    connector                  entry of the Q-Former, every option written out, `vocab` among them
    loss                       terms, embed, smoothing ...
    tokenizer                  name and hash
    preparation                how images and captions are prepared
    sha256                     over the manifest without this key and all tensors

and whatever else the caller says of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import vpeft
from mllm.blip2.model import Blip2, FirstStage
from mllm.blip2.text import Words, load_tokenizer
from mllm.language import tokenizer_hash
from mllm.qformer import QFormer
from mllm.shapes import VisionShape
from mllm.vision import tower, vision_shape
from vpeft import adapter_file
from vpeft.checkpoint import packed, rebuild, unpacked

FORMAT = 1
KEY = "blip2"
_VISION = "vision."
_KINDS: dict[str, Any] = {
    "seed": int,
    "backbone": adapter_file.TOWER,
    "method": ({}, [{}]),
    "connector": {},
    "loss": {},
    "tokenizer": {"name": str, "sha256": str},
    "preparation": {"max_length": int},
}
_SIZES = ("dim", "depth", "heads", "hidden", "cross_every", "dropout", "vocab", "positions")


def build_stage(connector: Mapping[str, Any], loss: Mapping[str, Any], vision: VisionShape) -> FirstStage:
    """What learns.

    Args:
        connector: Entry of the Q-Former with every option written out.
        loss: Settings of `mllm.blip2.schema.Blip2LossConfig`.
        vision: What it reads.

    Raises:
        ValueError: sizes that cannot be.
    """
    qformer = QFormer(connector["tokens"], vision.dim, **{name: connector[name] for name in _SIZES})
    return FirstStage(qformer, vision.dim, **loss)


def save(path: Path | str, model: Blip2, manifest: Mapping[str, Any]) -> None:
    """Write an adapter atomically: a crash or a full disk leaves the file that was there.

    Args:
        path: The file.
        model: Its `delta()` is saved.
        manifest: JSON-able, with the keys in the module's docstring; format, vpeft and sha256 are filled in.

    Raises:
        OSError: The file could not be written.
    """
    backbone = {**manifest["backbone"], "weights": asdict(model.vision.backbone.weights)}
    filled = {"format": FORMAT, "vpeft": vpeft.__version__, **manifest, "backbone": backbone}
    tensors = {name: tensor for name, tensor in model.delta().items() if not name.startswith(_VISION)}
    tensors |= {_VISION + name: tensor for name, tensor in packed(model.vision).items()}
    adapter_file.write(Path(path), tensors, filled, KEY)


def read(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of an adapter, as the file holds them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter of a first stage, damaged, or of a newer format.
    """
    manifest = adapter_file.read_manifest(Path(path), KEY, FORMAT)
    adapter_file.check_manifest(path, manifest, _KINDS)
    return manifest, adapter_file.read_tensors(Path(path), manifest)


def load(
    path: Path | str, weights: str | None = None, tokenizer: str | None = None
) -> tuple[Blip2, Words, dict[str, Any]]:
    """Rebuild a first stage, and load an adapter into it.

    Args:
        path: The file.
        weights: File of the tower's weights, where they are no longer where training found them.
        tokenizer: Where the tokenizer is, if it is no longer where training found it.

    Returns:
        The model on the CPU in eval mode, what turns captions into its ids, and the manifest.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter of a first stage, damaged, or its tower or tokenizer is not what it was.
        RuntimeError: Weights or tokenizer could not be fetched.
    """
    path = Path(path)
    manifest, tensors = read(path)
    saved = manifest["backbone"]
    backbone = rebuild(path, {**saved, "seed": manifest["seed"]}, weights)
    backbone.normalization = (tuple(saved["normalization"]["mean"]), tuple(saved["normalization"]["std"]))
    vision = tower(backbone, manifest["method"], saved["layer"], saved["prefix"], saved["norm"])
    seen = {name.removeprefix(_VISION): tensor for name, tensor in tensors.items() if name.startswith(_VISION)}
    vision.load_delta(unpacked(vision, seen))
    model = Blip2(vision, build_stage(manifest["connector"], manifest["loss"], vision_shape(vision)))
    model.connector.load_state_dict(learned(tensors))
    words = Words(load_tokenizer(tokenizer or manifest["tokenizer"]["name"]), manifest["preparation"]["max_length"])
    if tokenizer_hash(words.tokenizer) != manifest["tokenizer"]["sha256"]:
        raise ValueError(
            f"{path} was trained with another tokenizer {manifest['tokenizer']['name']} than the one here: the same "
            "caption would be other words. Give the one it was trained with."
        )
    return model.eval(), words, manifest


def learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the `FirstStage` in an adapter."""
    prefix = "connector."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
