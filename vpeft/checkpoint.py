"""An adapter: one safetensors file with exactly what training changed, and what it takes to use it.

Tensors are `Tuned.delta()`, those of a method that packs (`vpeft.methods.Packing`) as it packs them.
The header's metadata holds a JSON manifest under `vpeft`:

    format, vpeft                format number and version of the package that wrote it
    backbone                     name, pretrained, image_size, seed, weights {source, origin, sha256}
    kind                         of run: classification, segmentation, multitask
    method, head, drop_path      list of method entries; head {kind, init, batch_norm, ...}, or {name, ...}
    classes                      names, in the order of the logits
    normalization                name, mean, std
    resize, interpolation, task  how images are prepared; what it was trained on
    parameters, result           counts per component; the run's summary
    source                       of one that was imported: repository, file and its sha256, whether the head was in it
    sha256                       over the manifest without this key and every tensor's name, dtype, shape and bytes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

import vpeft
from vpeft import adapter_file
from vpeft.methods import Packing

if TYPE_CHECKING:
    from vpeft.tuned import Tuned

FORMAT = 1
_KINDS: dict[str, Any] = {
    "backbone": {
        "name": str,
        "pretrained": str,
        "image_size": (int, [int, 2]),
        "seed": int,
        "weights": adapter_file.WEIGHTS,
    },
    "method": [{}],
    "drop_path": float,
    "classes": None,
    "normalization": adapter_file.PIXELS,
    "resize": str,
    "interpolation": str,
    "task": str,
}
_OF_KIND: dict[str, Any] = {
    "classification": {"classes": [str], "head": {"init": str, "batch_norm": bool}},
    "segmentation": {"classes": [str], "head": {"name": str}},
    "multitask": {"head": {"kind": str, "reading": str}, "outputs": {}},
}


def save_adapter(path: Path | str, tuned: Tuned, manifest: Mapping[str, Any]) -> None:
    """Write an adapter atomically: a crash or a full disk leaves the file that was there.

    Args:
        path: The file.
        tuned: Model whose `delta()` is saved.
        manifest: JSON-able, with the keys in the module's docstring; format, vpeft, sha256 and the
            backbone's weights are filled in.

    Raises:
        ValueError: The manifest lacks a key.
        OSError: The file could not be written.
    """
    backbone = {**manifest.get("backbone", {}), "weights": asdict(tuned.backbone.weights)}
    filled = {"format": FORMAT, "vpeft": vpeft.__version__, **manifest, "backbone": backbone}
    _check_keys(path, filled)
    adapter_file.write(Path(path), packed(tuned), filled, "vpeft")


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of an adapter; tensors are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter, damaged, or of a newer format.
    """
    manifest = adapter_file.read_manifest(Path(path), "vpeft", FORMAT)
    _check_keys(path, manifest)
    return manifest


def load_adapter(path: Path | str, weights: str | None = None) -> tuple[Tuned, dict[str, Any]]:
    """Rebuild backbone, methods and head, and load an adapter into them.

    Args:
        path: The file.
        weights: File of the backbone's weights, where they are no longer where training found them.

    Returns:
        The model on the CPU in eval mode, and the manifest.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter, damaged, or its backbone cannot be rebuilt as it was.
        RuntimeError: The backbone's weights could not be fetched.
    """
    path = Path(path)
    manifest = read_manifest(path)
    tensors = adapter_file.read_tensors(path, manifest)
    kind = _kind(path, manifest)
    backbone = rebuild(path, manifest["backbone"], weights)
    tuned = _BUILDERS[kind](manifest, backbone)
    try:
        tuned.load_delta(unpacked(tuned, tensors))
    except ValueError as error:
        raise ValueError(f"{path} does not fit the model that its manifest describes: {error}") from error
    return tuned.eval(), manifest


def _kind(path: Path | str, manifest: Mapping[str, Any]) -> str:
    kind = manifest.get("kind", "classification")
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise ValueError(
            f"{path} is an adapter of kind '{kind}', and this version knows {', '.join(_BUILDERS)}; install a newer "
            "vpeft."
        )
    return kind


def _classifier(manifest: dict[str, Any], backbone: Any) -> Tuned:
    from vpeft import heads, methods
    from vpeft.tuned import Tuned

    attached = methods.build(manifest["method"] or {"name": "linear"}, backbone)
    head = heads.build(manifest["head"], backbone, methods.feature_dim(backbone, attached), manifest["classes"])
    return Tuned(backbone, attached, head, manifest["drop_path"])


def _segmenter(manifest: dict[str, Any], backbone: Any) -> Tuned:
    from vpeft.dense.build import tuned_of

    return tuned_of(manifest, backbone, manifest["classes"])


def _several(manifest: dict[str, Any], backbone: Any) -> Tuned:
    from vpeft.dense.multitask_build import tuned_of

    return tuned_of(manifest, backbone)


# What rebuilds the model of an adapter, by its `kind`; those written before there was one are classifiers.
_BUILDERS = {"classification": _classifier, "segmentation": _segmenter, "multitask": _several}


def packed(tuned: Tuned, delta: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The delta as a file holds it; `tuned.delta()` where it is not given."""
    given = tuned.delta() if delta is None else delta
    delta = {name: tensor.detach().cpu() for name, tensor in given.items()}
    for prefix, method in _packing(tuned):
        delta |= _prefixed(prefix, method.pack(_taken(delta, prefix)))
    return delta


def unpacked(tuned: Tuned, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta that a file holds."""
    delta = dict(tensors)
    for prefix, method in _packing(tuned):
        packed = _taken(delta, prefix)
        try:
            delta |= _prefixed(prefix, method.unpack(packed))
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{type(method).__name__} cannot unpack {', '.join(sorted(packed)) or 'nothing'}: {error}"
            ) from error
    return delta


def _packing(tuned: Tuned) -> list[tuple[str, Packing]]:
    return [(f"methods.{i}.", method) for i, method in enumerate(tuned.methods) if isinstance(method, Packing)]


def _taken(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take out of `state` what begins with `prefix`, without it."""
    return {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def rebuild(path: Path, saved: dict[str, Any], weights: str | None) -> Any:
    """The backbone that an adapter was trained on.

    Args:
        path: The adapter, for messages.
        saved: `backbone` of its manifest.
        weights: File of the weights, where they are no longer where training found them.

    Raises:
        ValueError: It cannot be built, or its weights are others.
    """
    from vpeft import backbones

    was = saved["weights"]
    try:
        backbone = backbones.create(saved["name"], weights or saved["pretrained"], saved["image_size"], saved["seed"])
    except (ValueError, OSError) as error:
        hint = "" if weights or was["source"] != "file" else " Say where its weights are now with --weights FILE."
        raise ValueError(f"{path}: its backbone {saved['name']} cannot be rebuilt: {error}{hint}") from error
    except (MemoryError, RuntimeError) as error:  # a size that does not fit into memory, or a hub out of reach
        raise RuntimeError(f"{path}: its backbone {saved['name']} cannot be rebuilt: {error}") from error
    found = backbone.weights
    if found.sha256 != was["sha256"]:
        raise ValueError(
            f"{path} was trained on other weights of {saved['name']}: {was['source']} {was['origin']} with sha256 "
            f"{was['sha256']}, and here {found.source} {found.origin} has {found.sha256}. "
            "Give the file it was trained on with --weights FILE."
        )
    return backbone


def _check_keys(path: Path | str, manifest: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(manifest))
    adapter_file.check_manifest(path, plain, _KINDS | _OF_KIND[_kind(path, plain)])
