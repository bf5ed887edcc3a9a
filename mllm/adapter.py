"""A multimodal adapter: one safetensors file with exactly what was trained, and what it takes to use it.

Tensors are `VLM.delta()`: `vision.*` what methods learned in the tower (packed where a method packs), `connector.*`,
`language.*` and `prefix.*` what learned in the language model. The header's metadata holds a JSON manifest under
`mllm`:

    format, vpeft              format number and version of the package that wrote it
    seed                       of random weights
    backbone                   name, pretrained, image_size, layer, prefix, norm, normalization, weights {source, ...}
    method                     method entry of the tower, or list of such
    connector                  its entry, every option written out
    language                   name, pretrained, dtype, weights {source, origin, sha256}, tokenizer (its hash)
    language_method            its entry, every option written out
    preparation                how images and conversations are written as sequences, every field of the template
    sha256                     over the manifest without this key and all tensors

and whatever else the caller says of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import vpeft
from mllm import adapt, connectors
from mllm import language as languages
from mllm.language import Language, tokenizer_hash
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from vpeft import adapter_file
from vpeft.checkpoint import packed, rebuild, unpacked

FORMAT = 1
KEY = "mllm"
_VISION = "vision."
_KINDS: dict[str, Any] = {
    "seed": int,
    "backbone": adapter_file.TOWER,
    "method": ({}, [{}]),
    "connector": {"name": str},
    "language": {
        "name": str,
        "pretrained": str,
        "dtype": str,
        "weights": adapter_file.WEIGHTS,
        "tokenizer": str,
    },
    "language_method": {"name": str},
    "preparation": {},
}
# Of `preparation`: what it takes to ask the model, which an adapter that is only trained further can lack.
PREPARATION: dict[str, Any] = {
    "image_size": [int, 2],
    "aspect": str,
    "interpolation": str,
    "fill": [int, 3],
    "template": str,
    "system": (str, type(None)),
}


def save_adapter(
    path: Path | str, model: VLM, manifest: Mapping[str, Any], delta: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter atomically: a crash or a full disk leaves the file that was there.

    Args:
        path: The file.
        model: Its `delta()` is saved.
        manifest: JSON-able, with the keys in the module's docstring; format, vpeft, sha256, the hashes of tower and
            language model and that of the tokenizer are filled in.
        delta: The whole of `model.delta()`, where the model is shared out among processes (FSDP).

    Raises:
        ValueError: The manifest lacks a key.
        OSError: The file could not be written.
    """
    about = model.about
    filled = {
        "format": FORMAT,
        "vpeft": vpeft.__version__,
        **manifest,
        "backbone": {**manifest.get("backbone", {}), "weights": asdict(model.vision.backbone.weights)},
        "language": {
            **manifest.get("language", {}),
            "weights": asdict(about.weights),
            "tokenizer": tokenizer_hash(about.tokenizer),
        },
    }
    _check_keys(path, filled)
    seen, tensors = _parted(model.delta() if delta is None else delta)
    tensors |= {_VISION + name: tensor for name, tensor in packed(model.vision, seen).items()}
    adapter_file.write(Path(path), tensors, filled, KEY)


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of an adapter; tensors are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a multimodal adapter, damaged, or of a newer format.
    """
    manifest = adapter_file.read_manifest(Path(path), KEY, FORMAT)
    _check_keys(path, manifest)
    return manifest


def read_adapter(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of an adapter, as the file holds them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a multimodal adapter, damaged, or of a newer format.
    """
    manifest = read_manifest(path)
    return manifest, adapter_file.read_tensors(Path(path), manifest)


def load_adapter(
    path: Path | str, weights: str | None = None, language: str | None = None
) -> tuple[VLM, dict[str, Any]]:
    """Rebuild tower, connector and language model, and load an adapter into them.

    Args:
        path: The file.
        weights: File of the tower's weights, where they are no longer where training found them.
        language: The language model, `hf:FOLDER`, where it is no longer where training found it.

    Returns:
        The model on the CPU in eval mode, and the manifest.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter, damaged, or its models cannot be rebuilt as they were.
        RuntimeError: Weights could not be fetched.
    """
    path = Path(path)
    manifest, tensors = read_adapter(path)
    model = _model(path, manifest, weights, language)
    try:
        put(model, tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not fit the model that its manifest describes: {error}") from error
    return model.eval(), manifest


def put(model: VLM, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of an adapter into a model that was built as it says.

    Raises:
        ValueError: tensors are missing, unknown or of another shape.
    """
    seen, rest = _parted(tensors)
    model.load_delta(rest | {_VISION + name: tensor for name, tensor in unpacked(model.vision, seen).items()})


def _parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the tower, under its own names, and the rest."""
    seen = {name.removeprefix(_VISION): tensor for name, tensor in tensors.items() if name.startswith(_VISION)}
    return seen, {name: tensor for name, tensor in tensors.items() if not name.startswith(_VISION)}


def _model(path: Path, manifest: dict[str, Any], weights: str | None, language: str | None) -> VLM:
    saved = manifest["backbone"]
    backbone = rebuild(path, {**saved, "seed": manifest["seed"]}, weights)
    backbone.normalization = (tuple(saved["normalization"]["mean"]), tuple(saved["normalization"]["std"]))
    vision = tower(backbone, manifest["method"], saved["layer"], saved["prefix"], saved["norm"])
    own = _language(path, manifest["language"], manifest["seed"], language)
    adapt.apply(own, manifest["language_method"])
    return VLM(vision, connectors.build(manifest["connector"], vision_shape(vision), own.shape), own)


def _language(path: Path, saved: dict[str, Any], seed: int, elsewhere: str | None) -> Language:
    was = saved["weights"]
    hint = "Give the model it was trained on with --language hf:FOLDER."
    try:
        found = languages.load(elsewhere or saved["name"], saved["pretrained"], saved["dtype"], seed)
    except ValueError as error:
        raise ValueError(
            f"{path}: its language model {saved['name']} cannot be rebuilt: {error}{'' if elsewhere else f' {hint}'}"
        ) from error
    if found.weights.sha256 != was["sha256"]:
        here = found.weights
        raise ValueError(
            f"{path} was trained beside other weights of {saved['name']}: {was['source']} {was['origin']} with sha256 "
            f"{was['sha256']}, and here {here.source} {here.origin} has {here.sha256}. {hint}"
        )
    if (words := tokenizer_hash(found.tokenizer)) != saved["tokenizer"]:
        raise ValueError(
            f"{path} was trained with another tokenizer of {saved['name']} (its hash is {saved['tokenizer'][:12]}, and "
            f"the one here has {words[:12]}): the same text would be other words. {hint}"
        )
    return found


def _check_keys(path: Path | str, manifest: Mapping[str, Any]) -> None:
    adapter_file.check_manifest(path, json.loads(json.dumps(manifest)), _KINDS)
