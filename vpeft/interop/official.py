"""Checkpoints of official code, read by the key map of their method. Files are plain tensors: no pickle runs code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpeft import methods
from vpeft.backbones import Backbone
from vpeft.backbones.weights import load_file
from vpeft.fetch import file_sha256
from vpeft.interop import adaptformer, fact, ssf, vpt
from vpeft.interop.imported import Found
from vpeft.interop.layout import Layout, Tensors

KINDS: dict[str, Layout] = {
    "vpt": vpt.LAYOUT,
    "adaptformer": adaptformer.LAYOUT,
    "ssf": ssf.LAYOUT,
    "fact_tt": fact.TRAIN,
    "fact_tk": fact.TUCKER,
}
# What numpy's arrays of floats are pickled with, under its present and its former module.
_ARRAYS = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def read(kind: str, path: Path | str, backbone: Backbone, options: Mapping[str, Any] | None = None) -> Found:
    """What an official checkpoint holds, in the names of this project.

    Args:
        kind: Method, one of KINDS.
        path: Torch file or safetensors.
        backbone: It was trained on; what the file has of it is compared.
        options: Of the method, for those that no file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A pickle of more than tensors, a file of another method or of another backbone, tensors that are
            missing, left over or of another shape, an option that is needed and not given.
    """
    path, layout, given = Path(path), KINDS[kind], dict(options or {})
    tensors = {layout.plain(name): tensor for name, tensor in _tensors(path).items()}
    for name, where in (layout.needed or {}).items():
        if name not in given:
            raise ValueError(f"{path} does not hold the {name} of {kind}; {where}. Give it with --method.{name}.")
    try:
        spec = {"name": kind, **layout.options(tensors, backbone), **given}
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    spec = methods.resolve(spec)
    assert isinstance(spec, dict)
    (method,) = methods.build(spec, backbone)
    own, names = method.state_dict(), layout.names(backbone, spec)
    if unnamed := sorted(set(own) ^ set(names)):
        raise ValueError(
            f"{layout.repository} has no {kind} for a backbone like {backbone.name}: it has no name for {unnamed[0]}. "
            "Give the backbone that the file was trained on."
        )
    state = {ours: _joined(path, tensors, theirs, own[ours]) for ours, theirs in names.items()}
    head = next((head for head in layout.heads if head["linear.weight"] in tensors), {})
    classifier = {ours: _joined(path, tensors, (theirs,)) for ours, theirs in head.items()}
    used = {name for theirs in names.values() for name in theirs} | set(head.values())
    notes, compared = _compared(path, tensors, layout, backbone)
    used |= compared
    left = sorted(set(tensors) - used)
    if strange := [name for name in left if re.search(layout.marks, name)]:
        raise ValueError(
            f"{path} holds {strange[0]}{_more(strange)}, for which there is no place in {kind} on {backbone.name}: it "
            "is of a deeper backbone or of another variant of the method. Give the backbone that it was trained on."
        )
    if left:
        notes.append(f"{len(left)} tensors of the file were not used: {', '.join(left[:3])}{_more(left[2:])}")
    source = {"repository": layout.repository, "file": path.name, "sha256": file_sha256(path)}
    return Found(spec, state, classifier, source, notes, layout.normalization, layout.resize, layout.interpolation)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except ValueError:
        if (arrays := _arrays(path)) is None:
            raise
        return arrays


def _arrays(path: Path) -> dict[str, Tensor] | None:
    """A file of numpy arrays, as KMnP/vpt saves prompts; None if it is anything else."""
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the reader of weights has said what is wrong
        return None
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        return None
    return {name: torch.from_numpy(value) for name, value in found.items()} or None


def _joined(path: Path, tensors: Tensors, names: tuple[str, ...], like: Tensor | None = None) -> Tensor:
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(
            f"{path} lacks {missing[0]}: it is not whole, or was trained on a smaller backbone. Copy it again, or give "
            "the backbone that it was trained on."
        )
    parts = [tensors[name] for name in names]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in names)
        raise ValueError(
            f"{path} holds tensors that belong together and do not fit each other: {shapes}. It is damaged; copy it "
            "again."
        )
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if like is not None and whole.shape != like.shape:
        raise ValueError(
            f"{path} holds {' and '.join(names)} as {list(whole.shape)}, and this backbone and these options need "
            f"{list(like.shape)}. Give the backbone and the options that it was trained with."
        )
    return whole.to(like.dtype if like is not None else whole.dtype)


def _compared(path: Path, tensors: Tensors, layout: Layout, backbone: Backbone) -> tuple[list[str], set[str]]:
    """What to say of the backbone's own tensors in the file, and their names."""
    used: set[str] = set()
    same, differ = 0, []
    state = backbone.model.state_dict()
    for ours, tensor in state.items():
        theirs = next((names for names in (layout.backbone(ours), (ours,)) if all(n in tensors for n in names)), None)
        if theirs is None:
            continue
        used.update(theirs)
        given = _joined(path, tensors, theirs)
        # A running average of frozen weights has rounded them.
        close = given.shape == tensor.shape and torch.allclose(given.to(tensor.dtype), tensor, rtol=1e-4, atol=1e-5)
        if close:
            same += 1
        else:
            differ.append(theirs[0])
    if differ:
        raise ValueError(
            f"{path} was trained on other weights than those of {backbone.name} here: {len(differ)} of "
            f"{same + len(differ)} tensors differ ({differ[0]}{_more(differ)}). Give the file it was trained on with "
            "--pretrained FILE."
        )
    if not same:
        return ["the file holds nothing of the backbone, so nobody can tell whether it is the right one"], used
    return [f"{same} of the backbone's {len(state)} tensors are in the file and equal"], used


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
