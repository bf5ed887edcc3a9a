"""What a run begins with: an adapter of an earlier stage, or a published checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mllm.adapter import KEY, read_adapter
from mllm.blip2.adapter import FORMAT
from mllm.blip2.adapter import KEY as FIRST_STAGE
from mllm.blip2.start import connector_state
from mllm.importing import imported
from mllm.vision import Tokens
from mllm.vlm import VLM
from vpeft import adapter_file
from vpeft.checkpoint import unpacked
from vpeft.tuned import difference

# What learns in the language model stands under these names in an adapter.
_LANGUAGE = ("language.", "prefix.")


def start_from(path: Path, model: VLM, method: Any = None, language_method: Any = None) -> None:
    """Begin with the connector of an earlier stage, and with whatever else of it this run trains the same way.

    Prints one line that says what was taken and what was left.

    Args:
        path: An adapter of kind mllm; of kind blip2, whose Q-Former begins BLIP-2's second stage; or a published
            checkpoint (`mllm.importing`).
        model: Is changed in place.
        method: What this run trains in the tower, with every option written out; None takes what has the same tensors.
        language_method: What it trains in the language model, likewise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such thing, is damaged, was trained behind another vision tower, or its connector is
            another than the model's.
    """
    package = _package(path)
    if package == KEY:
        said = _from_adapter(path, model, method, language_method)
    elif package == FIRST_STAGE:
        manifest = adapter_file.read_manifest(path, FIRST_STAGE, FORMAT)
        _check_tower(path, manifest["backbone"], model)
        model.connector.load_state_dict(connector_state(path, model.connector))
        said = "the Q-Former of a first stage"
    elif package is not None:
        raise ValueError(
            f"start: {path} is an adapter of {package}, without a connector; give one of kind mllm or blip2, or a "
            "published checkpoint."
        )
    else:
        state, said = imported(path, model.connector)
        model.connector.load_state_dict(state)
    print(f"start: {path}: took {said}", flush=True)


def _package(path: Path) -> str | None:
    """Whose adapter a file is; None if it is none."""
    if (path.is_dir() and (path / "config.json").is_file()) or (path.suffix != ".safetensors" and path.is_file()):
        return None
    return adapter_file.package(path)


def _from_adapter(path: Path, model: VLM, method: Any, language_method: Any) -> str:
    manifest, tensors = read_adapter(path)
    _check_tower(path, manifest["backbone"], model)
    connector, vision = _under(tensors, "connector."), _under(tensors, "vision.")
    if wrong := difference(model.connector.state_dict(), connector):
        raise ValueError(
            f"start: the connector of {path} is {json.dumps(manifest['connector'])} and not this run's: {wrong}. Give "
            "connector the same options, and a language model of the same width."
        )
    model.connector.load_state_dict(connector)
    taken, left = [f"connector {manifest['connector']['name']}"], []
    if vision:
        fits = _same(manifest["method"], method) and _take_vision(model, vision)
        (taken if fits else left).append("what was trained in the vision tower")
    language = {name: tensor for name, tensor in tensors.items() if name.startswith(_LANGUAGE)}
    beside = manifest["language"]["weights"]["sha256"] == model.about.weights.sha256
    if language:
        fits = beside and _same(manifest["language_method"], language_method) and _take_language(model, language)
        (taken if fits else left).append(f"{manifest['language_method']['name']} of the language model")
    said = " and ".join(taken)
    if not beside:
        said += f", trained beside other weights, of {manifest['language']['name']}"
    return said + (f"; left {' and '.join(left)}, which does not fit this run" if left else "")


def _check_tower(path: Path, tower: Mapping[str, Any], model: VLM) -> None:
    was, here = tower["weights"], model.vision.backbone.weights
    if here.sha256 != was["sha256"]:
        raise ValueError(
            f"start: the connector of {path} reads another vision tower: {was['source']} {was['origin']} with sha256 "
            f"{was['sha256'][:12]}, and this run's is {here.source} {here.origin} with {here.sha256[:12]}. Give the "
            "same vision.backbone and vision.pretrained."
        )
    neck = model.vision.neck
    assert isinstance(neck, Tokens), "a tower ends in its tokens"
    read = {"layer": tower["layer"] % neck.depth, "prefix": tower["prefix"], "norm": tower["norm"]}
    mine = {"layer": neck.layer, "prefix": bool(neck.prefix), "norm": neck.norm}
    if other := [name for name in read if read[name] != mine[name]]:
        raise ValueError(
            f"start: the connector of {path} reads other tokens of the vision tower: vision.{other[0]} was "
            f"{tower[other[0]]}. Give this run the same vision.layer, vision.prefix and vision.norm."
        )


def _take_vision(model: VLM, saved: dict[str, Tensor]) -> bool:
    """Load what was learned in the tower, if it has a place there."""
    try:
        model.vision.load_delta(unpacked(model.vision, saved))
    except ValueError:
        return False
    return True


def _take_language(model: VLM, saved: dict[str, Tensor]) -> bool:
    """Load what was learned in the language model, if it has a place there."""
    own = {name: tensor for name, tensor in model.delta().items() if name.startswith(_LANGUAGE)}
    if difference(own, saved):
        return False
    model.load_state_dict(saved, strict=False)
    return True


def _same(saved: Any, configured: Any) -> bool:
    """Whether two entries, or lists of entries, are one; None is any."""
    if configured is None:
        return True
    ours, theirs = (one if isinstance(one, list) else [one] for one in (configured, saved))
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
