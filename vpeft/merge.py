"""Write an adapter into the weights of its backbone, for use without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vpeft.checkpoint import load_adapter
from vpeft.fetch import write_atomic
from vpeft.interop import hf_folder, open_clip_model, timm_model
from vpeft.interop.folder import new_folder
from vpeft.tuned import Tuned


def merge(adapter: Path | str, output: Path | str, weights: str | None = None) -> tuple[list[Path], str]:
    """Save the merged model under the names of its vendor's own library, which loads it strictly.

    timm: one file, with the head where the model has a plain classifier of its own. open_clip: one file with both
    towers, for `create_model(pretrained=FILE)`; the visual tower alone where the weights came without a text tower.
    transformers: a folder for `AutoModel.from_pretrained`, or one file of the tower. A head that has no place in the
    model is saved beside it, as `<stem>.head.safetensors` (`head.safetensors` in a folder) under the names of its class
    in `vpeft.heads`. The metadata records classes and preprocessing, as JSON under `vpeft_merged`.

    Args:
        adapter: The adapter.
        output: The file to write, `*.safetensors`; or of a transformers tower a folder, which is made.
        weights: File of the backbone's weights, where they are no longer where training found them.

    Returns:
        The files written, and how to load them.

    Raises:
        ValueError: The adapter cannot be loaded, one of its methods cannot be merged, or `output` has another suffix or
            is a folder that is there already.
        RuntimeError: The text tower of an open_clip model could not be had.
        OSError: A file could not be written.
    """
    output = Path(output)
    if output.suffix not in (".safetensors", ""):
        raise ValueError(f"{output} is not a name for the merged weights; it has to end in .safetensors.")
    tuned, manifest = load_adapter(adapter, weights)
    if (kind := manifest.get("kind", "classification")) != "classification":
        raise ValueError(
            f"{adapter} is of kind {kind}: its neck and heads have no place in a vendor's model, and only adapters of "
            "kind classification are merged into a file. Use it as it is, with tools/test.py or tools/predict.py."
        )
    library = tuned.backbone.recipe.library if tuned.backbone.recipe else "timm"
    if not output.suffix and library != "hf":
        raise ValueError(
            f"{output} is not a name for the merged weights; it has to end in .safetensors. A folder is written for "
            f"towers of transformers (hf:...), and this backbone is {tuned.backbone.name}."
        )
    try:
        state = tuned.merge()
    except ValueError as error:
        raise ValueError(f"{adapter}: {error}") from error
    metadata = {"format": "pt", "vpeft_merged": json.dumps(about(manifest))}
    if not output.suffix:
        return _folder(output, tuned, state, manifest, metadata)
    classes, beside = len(manifest["classes"]), output.with_name(f"{output.stem}.head.safetensors")
    if classifier := timm_model.classifier(tuned, classes):
        _save(output, state | timm_model.under(classifier, tuned), metadata)
        return [output], f"load it with {timm_model.made(tuned.backbone, classes)}"
    head = f"{beside} is the head, a vpeft.heads.{type(tuned.head).__name__}"
    how = f"{output} is the backbone without a classifier; {head}"
    if library == "open_clip":
        both = open_clip_model.whole(tuned.backbone, state)
        if both is None:
            how = f"{output} is the visual tower alone, as the weights came without a text tower; {head}"
        else:
            state, how = both, f"load it with {open_clip_model.loading(tuned.backbone, output)}; {head}"
    _save(output, state, metadata)
    _save(beside, tuned.head.state_dict(), metadata)
    return [output, beside], how


def about(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a file for other libraries says of the adapter that it was made from."""
    keys = ("vpeft", "backbone", "method", "classes", "normalization", "resize", "interpolation", "task")
    return {key: manifest[key] for key in keys if key in manifest}


def _folder(
    output: Path, tuned: Tuned, state: dict[str, Tensor], manifest: dict[str, Any], metadata: dict[str, str]
) -> tuple[list[Path], str]:
    with new_folder(output) as built:
        kind, whole = hf_folder.save(built, tuned, state, manifest)
        if not whole:
            _save(built / "head.safetensors", tuned.head.state_dict(), metadata)
    load = f"load it with {kind}.from_pretrained('{output}')"
    if whole:
        return [output], f"{load}, or the tower alone with AutoModel"
    return [output], f"{load}; {output / 'head.safetensors'} is the head, a vpeft.heads.{type(tuned.head).__name__}"


def _save(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
