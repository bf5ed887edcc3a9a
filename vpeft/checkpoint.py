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
    sha256                       over the manifest without this key and every tensor's name, dtype, shape and bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vpeft
from vpeft.backbones.weights import content_hash
from vpeft.fetch import write_atomic
from vpeft.methods import Packing
from vpeft.nearest import did_you_mean

if TYPE_CHECKING:
    from vpeft.tuned import Tuned

FORMAT = 1
_KEYS = {
    "backbone": ("name", "pretrained", "image_size", "seed", "weights"),
    "method": (),
    "drop_path": (),
    "classes": (),
    "normalization": ("name", "mean", "std"),
    "resize": (),
    "interpolation": (),
    "task": (),
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
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.clone().contiguous() for name, tensor in _packed(tuned).items()}
    plain = json.loads(json.dumps(filled))
    text = json.dumps({**plain, "sha256": _digest(plain, tensors)})
    write_atomic(Path(path), lambda temporary: save_file(tensors, temporary, {"format": "pt", "vpeft": text}))


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of an adapter; tensors are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter, damaged, or of a newer format.
    """
    path = Path(path)
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("vpeft")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if text is None:
        raise ValueError(f"{path} is a safetensors file without a vpeft manifest, so it is not an adapter.")
    try:
        manifest = json.loads(text)
        newer = manifest["format"] > FORMAT
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path, "its manifest cannot be read") from error
    if newer:
        raise ValueError(
            f"{path} has adapter format {manifest['format']} (written by vpeft {manifest.get('vpeft')}); "
            f"vpeft {vpeft.__version__} reads up to {FORMAT}. Install a newer vpeft."
        )
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
    tensors = _load_tensors(path, manifest)
    kind = _kind(path, manifest)
    backbone = _rebuild(path, manifest["backbone"], weights)
    tuned = _BUILDERS[kind](manifest, backbone)
    try:
        tuned.load_delta(_unpacked(tuned, tensors))
    except ValueError as error:
        raise ValueError(f"{path} does not fit the model that its manifest describes: {error}") from error
    return tuned.eval(), manifest


def _kind(path: Path, manifest: dict[str, Any]) -> str:
    kind = manifest.get("kind", "classification")
    if kind not in _BUILDERS:
        raise ValueError(f"{path} is an adapter of kind '{kind}', and there are {', '.join(_BUILDERS)}.")
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


def _packed(tuned: Tuned) -> dict[str, Tensor]:
    """The delta as a file holds it."""
    delta = {name: tensor.detach().cpu() for name, tensor in tuned.delta().items()}
    for prefix, method in _packing(tuned):
        delta |= _prefixed(prefix, method.pack(_taken(delta, prefix)))
    return delta


def _unpacked(tuned: Tuned, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _load_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if _digest(manifest, tensors) != manifest.get("sha256"):
        raise _damaged(path, "its content does not have the sha256 it was saved with")
    return tensors


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256((json.dumps(rest, sort_keys=True) + content_hash(tensors)).encode()).hexdigest()


def _rebuild(path: Path, saved: dict[str, Any], weights: str | None) -> Any:
    from vpeft import backbones

    was = saved["weights"]
    try:
        backbone = backbones.create(saved["name"], weights or saved["pretrained"], saved["image_size"], saved["seed"])
    except (ValueError, OSError) as error:
        hint = "" if weights or was["source"] != "file" else " Say where its weights are now with --weights FILE."
        raise ValueError(f"{path}: its backbone {saved['name']} cannot be rebuilt: {error}{hint}") from error
    found = backbone.weights
    if found.sha256 != was["sha256"]:
        raise ValueError(
            f"{path} was trained on other weights of {saved['name']}: {was['source']} {was['origin']} with sha256 "
            f"{was['sha256']}, and here {found.source} {found.origin} has {found.sha256}. "
            "Give the file it was trained on with --weights FILE."
        )
    return backbone


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(found.name for found in path.glob("*.safetensors"))
        raise ValueError(
            f"{path} is a folder, not an adapter; {did_you_mean('adapter.safetensors', inside, f'{path}/')}"
        )
    if not path.is_file():
        beside = sorted(found.name for found in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(f"There is no adapter {path}; {did_you_mean(path.name, beside, f'{path.parent}/')}")
    with path.open("rb") as file:
        start = file.read(9)
    # The two ways torch.save has written. The length that a safetensors file begins with may start with the same
    # byte as a pickle, but its ninth byte is the brace that opens the header.
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise ValueError(
            f"{path} is a pickle, which can run any code and is not opened; an adapter is a safetensors file."
        )


def _check_keys(path: Path | str, manifest: Mapping[str, Any]) -> None:
    kind = manifest.get("kind", "classification")
    head = {"classification": ("init", "batch_norm"), "multitask": ("kind", "reading")}.get(kind, ("name",))
    for key, inner in (_KEYS | {"head": head}).items():
        section = manifest.get(key)
        missing = [key] if key not in manifest else [f"{key}.{one}" for one in inner if one not in (section or {})]
        if missing:
            raise ValueError(f"{path}: the manifest lacks {', '.join(missing)}; it is not a complete adapter.")


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is damaged or not a safetensors file ({reason}); copy or make it again.")
