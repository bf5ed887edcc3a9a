"""Connectors of published checkpoints: LLaVA's projector, and BLIP-2's Q-Former as LAVIS and as transformers saves it.

    mm_projector.0.weight, mm_projector.2.weight, ...        LLaVA's mm_projector.bin, or `mm_projector.weight` alone
    multi_modal_projector.linear_1.weight, linear_2 ...      LLaVA of transformers
    query_tokens, Qformer.bert.*, ln_vision.*, opt_proj.*    LAVIS (t5_proj and llm_proj with other language models)
    query_tokens, qformer.*, vision_model.post_layernorm.*, language_projection.*      BLIP-2 of transformers

A file is read as plain tensors (safetensors, or torch's with `weights_only`), a folder from its safetensors files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mllm import qformer_names
from mllm.connectors.linear import Linear
from mllm.connectors.mlp import MLP
from mllm.connectors.qformer import QFormerConnector
from mllm.stored import Shards
from vpeft.backbones.weights import load_file

_MLP = re.compile(r"(?:^|\.)mm_projector\.(?:(\d+)\.)?(weight|bias)$")
_LLAVA = re.compile(r"(?:^|\.)multi_modal_projector\.linear_([12])\.(weight|bias)$")
# Of the half of a Q-Former that is not of text.
_QUERIES = re.compile(r"^[Qq]former\..*(?:attention|_query)\.")
_MARKS = {
    "LAVIS": ("Qformer.bert.embeddings.LayerNorm.weight",),
    "transformers": ("qformer.layernorm.weight", "qformer.embeddings.layernorm.weight"),
}

Tensors = Mapping[str, Tensor]


def read(path: Path) -> Tensors:
    """The tensors of a file, or of a folder that `save_pretrained` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Damaged, a pickle that needs more than tensors, or a folder without safetensors files.
    """
    if not path.is_dir():
        return load_file(path)
    found = Shards(path)
    if not found:
        raise ValueError(f"start: {path} holds no *.safetensors; give a file, or a folder that save_pretrained wrote.")
    return found


def imported(path: Path, connector: nn.Module) -> tuple[dict[str, Tensor], str]:
    """A connector's state with what a published checkpoint has for it.

    Args:
        path: File or folder.
        connector: `linear`, `mlp` or `qformer` of the checkpoint's sizes.

    Returns:
        The state, and what was taken, in words.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, holds no connector that is known, or one of another kind or size.
    """
    tensors = read(path)
    if any(_MLP.search(name) or _LLAVA.search(name) for name in tensors):
        return _projector(path, tensors, connector), "the projector of a LLaVA"
    for kind, marks in _MARKS.items():
        if any(mark in tensors for mark in marks):
            state, whole = _qformer(path, tensors, connector, kind)
            return state, f"the Q-Former of {kind}" + ("" if whole else ", but for its map to the language model")
    some = ", ".join(sorted(tensors)[:3])
    raise ValueError(
        f"start: {path} holds no connector that is known: neither LLaVA's mm_projector nor BLIP-2's Q-Former, but "
        f"{some}, ... Give an adapter of this project, an mm_projector.bin, or weights of a BLIP-2."
    )


def _projector(path: Path, tensors: Tensors, connector: nn.Module) -> dict[str, Tensor]:
    maps: dict[int, dict[str, Tensor]] = {}
    for name in tensors:
        if found := _MLP.search(name) or _LLAVA.search(name):
            place = int(found[1] or 0) // (2 if _MLP.search(name) else 1)
            maps.setdefault(place, {})[found[2]] = tensors[name].float()
    depth = len(maps)
    kind = "{name: linear}" if depth == 1 else f"{{name: mlp, depth: {depth}}}"
    what = "one linear map" if depth == 1 else f"an MLP of {depth} maps"
    fits = isinstance(connector, MLP) and len(connector.layers) == 2 * depth - 1
    if not fits and not (depth == 1 and isinstance(connector, Linear)):
        raise ValueError(
            f"start: {path} holds {what}, and the connector is {type(connector).__name__}; give connector {kind}."
        )
    into = ["proj"] if isinstance(connector, Linear) else [f"layers.{2 * i}" for i in range(depth)]
    ordered = [maps[place] for place in sorted(maps)]
    return _fitting(
        path,
        {f"{stem}.{name}": tensor for stem, own in zip(into, ordered, strict=True) for name, tensor in own.items()},
        connector.state_dict(),
    )


def _qformer(path: Path, tensors: Tensors, connector: nn.Module, kind: str) -> tuple[dict[str, Tensor], bool]:
    """The state, and whether the map to the language model is the checkpoint's too."""
    if not isinstance(connector, QFormerConnector):
        raise ValueError(
            f"start: {path} holds a Q-Former, and the connector is {type(connector).__name__}; give connector "
            "{name: qformer}."
        )
    own = connector.state_dict()
    text = connector.qformer.words is not None
    names = {name: theirs for name in own if (theirs := _called(name, kind, text, tensors)) in tensors}
    if more := sorted(name for name in tensors if _QUERIES.search(name) and name not in names.values()):
        raise ValueError(
            f"start: {path} holds {more[0]} and {len(more) - 1} more that the connector has no place for; give it the "
            "depth and the cross_every that the checkpoint was made with."
        )
    taken = {name: tensors[theirs].float() for name, theirs in names.items()}
    # Another language model needs another map to it, which is then learned.
    whole = "proj.weight" in taken and taken["proj.weight"].shape == own["proj.weight"].shape
    if not whole:
        taken |= {name: tensor for name, tensor in own.items() if name.startswith("proj.")}
    return _fitting(path, taken, own), whole


def _called(name: str, kind: str, text: bool, tensors: Tensors) -> str:
    """What a tensor of the connector is called in a checkpoint."""
    part, _, rest = name.partition(".")
    if part == "qformer":
        if kind == "LAVIS":
            return qformer_names.lavis(rest)
        return ("" if rest == "queries" else "qformer.") + qformer_names.transformers(rest, text)
    places = {"norm": ("ln_vision",), "proj": ("opt_proj", "t5_proj", "llm_proj")}
    if kind != "LAVIS":
        places = {"norm": ("vision_model.post_layernorm",), "proj": ("language_projection",)}
    return next((f"{one}.{rest}" for one in places[part] if f"{one}.{rest}" in tensors), f"{places[part][0]}.{rest}")


def _fitting(path: Path, taken: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = [name for name in own if name not in taken]
    if missing:
        raise ValueError(
            f"start: {path} lacks {missing[0]} of the connector and {len(missing) - 1} more; give the connector the "
            "options that the checkpoint was made with."
        )
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"start: {name} is {list(tensor.shape)} in {path} and {list(own[name].shape)} in the connector; read "
                "the vision tower and give the language model and the options that the checkpoint was made with."
            )
    return taken
