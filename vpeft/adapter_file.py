"""The file of an adapter: tensors and a JSON manifest in one safetensors file, checked when it is read.

The manifest stands in the header's metadata under a key of its own for each package, and has `format`, `vpeft` (the
version of the package that wrote it) and `sha256`, over the rest of it and every tensor's name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vpeft
from vpeft.backbones.weights import content_hash
from vpeft.fetch import write_atomic
from vpeft.nearest import did_you_mean


def write(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], key: str) -> None:
    """Write an adapter atomically: a crash or a full disk leaves the file that was there.

    Args:
        path: The file.
        tensors: What it holds.
        manifest: JSON-able; sha256 is filled in.
        key: Of the metadata.

    Raises:
        OSError: The file could not be written.
    """
    # Copies, because safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    plain = json.loads(json.dumps(manifest))
    text = json.dumps({**plain, "sha256": digest(plain, copies)})
    write_atomic(path, lambda temporary: save_file(copies, temporary, {"format": "pt", key: text}))


def package(path: Path) -> str | None:
    """Whose adapter a safetensors file is, the key of its manifest; None if it is none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A folder, a pickle, or damaged.
    """
    return next((key for key in _TOOLS if key in _metadata(path)), None)


def read_manifest(path: Path, key: str, newest: int) -> dict[str, Any]:
    """The manifest of an adapter; tensors are not read.

    Args:
        path: The file.
        key: Of the metadata.
        newest: Highest format that can be read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter of this kind, damaged, or of a newer format.
    """
    metadata = _metadata(path)
    if key not in metadata:
        others = [other for other in _TOOLS if other in metadata]
        if others:
            raise ValueError(f"{path} is an adapter of {others[0]}; {_TOOLS[others[0]]}.")
        raise ValueError(
            f"{path} is a safetensors file without a {key} manifest, so it is not an adapter; give the one that a run "
            "wrote. Files of other projects are read by tools/import.py."
        )
    try:
        manifest = json.loads(metadata[key])
        newer = manifest["format"] > newest
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise damaged(path, "its manifest cannot be read") from error
    if newer:
        raise ValueError(
            f"{path} has adapter format {manifest['format']} (written by vpeft {manifest.get('vpeft')}); "
            f"vpeft {vpeft.__version__} reads up to {newest}. Install a newer vpeft."
        )
    return manifest


def _metadata(path: Path) -> dict[str, str]:
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error


_TOOLS = {
    "vpeft": "tools/test.py and tools/predict.py use it",
    "mllm": "tools/chat.py, tools/caption.py and tools/evaluate.py use it",
    "blip2": "a run of kind mllm begins with it (`start`)",
}


def read_tensors(path: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an adapter, as they were when it was written.

    Raises:
        ValueError: Damaged.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
    if digest(manifest, tensors) != manifest.get("sha256"):
        raise damaged(path, "its content does not have the sha256 it was saved with")
    return tensors


def digest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of a whole adapter, whatever its manifest says of that."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256((json.dumps(rest, sort_keys=True) + content_hash(tensors)).encode()).hexdigest()


def check_file(path: Path) -> None:
    """Raise unless the path is a file that can be a safetensors file.

    Raises:
        FileNotFoundError: There is no such file; names one beside it that is close.
        ValueError: A folder, or a pickle.
    """
    if path.is_dir():
        inside = sorted(found.name for found in path.glob("*.safetensors"))
        raise ValueError(f"{path} is a folder, not an adapter; {_near('adapter.safetensors', inside, path)}")
    if not path.is_file():
        beside = sorted(found.name for found in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(f"There is no adapter {path}; {_near(path.name, beside, path.parent)}")
    with path.open("rb") as file:
        start = file.read(9)
    # The two ways torch.save has written. The length that a safetensors file begins with may start with the same
    # byte as a pickle, but its ninth byte is the brace that opens the header.
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise ValueError(
            f"{path} is a pickle, which can run any code and is not opened; an adapter is a safetensors file."
        )


def _near(name: str, found: list[str], folder: Path) -> str:
    if not found:
        return "give the adapter.safetensors of a run."
    return did_you_mean(name, found, f"{folder}/")


# Kinds of values that several manifests have.
PIXELS = {"name": str, "mean": [float, 3], "std": [float, 3]}
WEIGHTS = {"source": str, "origin": str, "sha256": str}


# Of a tower whose tokens are read after one of its blocks.
TOWER = {
    "name": str,
    "pretrained": str,
    "image_size": (int, [int, 2]),
    "layer": int,
    "prefix": bool,
    "norm": bool,
    "normalization": {"mean": [float, 3], "std": [float, 3]},
    "weights": WEIGHTS,
}


def check_manifest(path: Path | str, manifest: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise unless a manifest has what it takes to rebuild a model; whoever writes one can write its sha256 too.

    Args:
        path: The adapter, for messages.
        manifest: Its own.
        kinds: What there must be: a type, a tuple of them, `[type]` for a list or `[type, length]`, None for anything,
            or a mapping of such.

    Raises:
        ValueError: A key is missing, or its value is of another kind.
    """
    if missing := list(_missing(manifest, kinds, "")):
        raise ValueError(
            f"{path}: the manifest lacks {', '.join(missing)}; it is not a complete adapter. Copy or make it again."
        )
    for key, value in _unlike(manifest, kinds, ""):
        raise ValueError(
            f"{path}: the manifest's {key} is {str(value)[:80]!r}, which no adapter has. Copy or make it again."
        )


def _missing(given: Mapping[str, Any], kinds: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, kind in kinds.items():
        if key not in given:
            yield prefix + key
        elif isinstance(kind, Mapping) and isinstance(inner := given[key] or {}, Mapping):
            yield from _missing(inner, kind, f"{prefix}{key}.")


def _unlike(given: Mapping[str, Any], kinds: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, kind in kinds.items():
        if isinstance(kind, Mapping) and isinstance(given[key], Mapping):
            yield from _unlike(given[key], kind, f"{prefix}{key}.")
        elif not _is(given[key], kind):
            yield prefix + key, given[key]


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return True
    if isinstance(kind, list):
        fits = isinstance(value, list) and all(_is(one, kind[0]) for one in value)
        return fits and (len(kind) == 1 or len(value) == kind[1])
    if isinstance(kind, tuple):
        return any(_is(value, one) for one in kind)
    if kind is float:
        return _is(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int and isinstance(value, bool):
        return False
    return isinstance(value, Mapping if isinstance(kind, Mapping) else kind)


def damaged(path: Path, reason: str) -> ValueError:
    """The error for a file that is not what was written."""
    return ValueError(f"{path} is damaged or not a safetensors file ({reason}); copy or make it again.")
