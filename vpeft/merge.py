"""Write an adapter into the weights of its backbone, for use without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vpeft.backbones.embedded import EMBEDDED
from vpeft.checkpoint import load_adapter
from vpeft.fetch import write_atomic
from vpeft.tuned import Tuned


def merge(adapter: Path | str, output: Path | str, weights: str | None = None) -> tuple[list[Path], str]:
    """Save the merged model as one safetensors file that the vendor's own class loads strictly.

    The head goes in where the model has a plain classifier of its own (timm); otherwise it is saved
    beside it, as `<stem>.head.safetensors` under the names of its class in `vpeft.heads`. The metadata
    records classes and preprocessing, as JSON under `vpeft_merged`.

    Args:
        adapter: The adapter.
        output: The file to write, `*.safetensors`.
        weights: File of the backbone's weights, where they are no longer where training found them.

    Returns:
        The files written, and how to load them.

    Raises:
        ValueError: The adapter cannot be loaded, one of its methods cannot be merged, or `output` has another suffix.
        OSError: A file could not be written.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} is not a name for the merged weights; it has to end in .safetensors.")
    tuned, manifest = load_adapter(adapter, weights)
    if (kind := manifest.get("kind", "classification")) != "classification":
        raise ValueError(f"{adapter} is of kind {kind}: its neck and heads are not weights of a vendor's model.")
    try:
        state = tuned.merge()
    except ValueError as error:
        raise ValueError(f"{adapter}: {error}") from error
    metadata = {"format": "pt", "vpeft_merged": json.dumps(_about(manifest))}
    whole = _with_head(tuned, state, len(manifest["classes"]))
    size = tuned.backbone.image_size
    if whole is not None:
        _save(output, whole, metadata)
        return [output], _timm_line(tuned.backbone.name, len(manifest["classes"]), size)
    beside = output.with_name(f"{output.stem}.head.safetensors")
    _save(output, state, metadata)
    _save(beside, tuned.head.state_dict(), metadata)
    head = type(tuned.head).__name__
    how = f"{output} is the backbone without a classifier; {beside} is the head, a vpeft.heads.{head}"
    return [output, beside], how


def _with_head(tuned: Tuned, state: dict[str, Tensor], classes: int) -> dict[str, Tensor] | None:
    """Backbone and head under timm's names, or None where timm's model with a classifier is not just that."""
    name = tuned.backbone.name
    if ":" in name.removeprefix("timm:") or set(tuned.head.state_dict()) != {"linear.weight", "linear.bias"}:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(_architecture(name), num_classes=classes, img_size=tuned.backbone.image_size)
    classifier = model.pretrained_cfg["classifier"]
    head = {key.replace("linear", classifier, 1): tensor for key, tensor in tuned.head.state_dict().items()}
    whole, wanted = state | head, model.state_dict()
    shapes = {key: tensor.shape for key, tensor in whole.items()}
    return whole if shapes == {key: tensor.shape for key, tensor in wanted.items()} else None


def _architecture(name: str) -> str:
    name = name.removeprefix("timm:")
    return EMBEDDED[name].architecture if name in EMBEDDED else name


def _timm_line(name: str, classes: int, size: tuple[int, int]) -> str:
    return f"load it with timm.create_model('{_architecture(name)}', num_classes={classes}, img_size={size})"


def _about(manifest: dict[str, Any]) -> dict[str, Any]:
    keys = ("vpeft", "backbone", "method", "classes", "normalization", "resize", "interpolation", "task")
    return {key: manifest[key] for key in keys if key in manifest}


def _save(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
