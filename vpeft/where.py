"""Where a method attaches: the seams that it really calls on a small ViT, not what it says of itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vpeft import methods
from vpeft.backbones import Backbone, wrap
from vpeft.seams import Affine, Block

DEPTH = 4
CHANGED, REPLACED, READ, LEARNS = "changed", "replaced", "read", "learns in place"
# Where the defaults would leave places of a small ViT out.
_OPTIONS = {"fishmask": {"share": 1.0}}

# Where a method may act, in the order of the forward pass, and what the place is called.
PLACES = {
    "pixels": "pixels",
    "patch_embed": "patch embedding",
    "tokens_in": "tokens entering the block",
    "norm1": "norm1",
    "attn_in": "input of the attention branch",
    "q": "q",
    "k": "k",
    "v": "v",
    "attention": "attention",
    "proj": "proj",
    "attn_out": "what attention adds",
    "norm2": "norm2",
    "mlp_in": "input of the MLP branch",
    "fc1": "fc1",
    "fc2": "fc2",
    "mlp_out": "what the MLP adds",
    "tokens_out": "tokens leaving the block",
    "leaving": "tokens leaving the last block",
    "norm": "last norm",
    "pool": "pool",
    "features": "features",
}


@dataclass
class Touch:
    """One way in which a method acts on one place.

    Args:
        place: A key of PLACES.
        seam: The call that was made.
        how: What it does to the place; changed until a forward pass shows that it only reads.
        block: Index of the block; None outside of the blocks.
    """

    place: str
    seam: str
    how: str
    block: int | None


@dataclass
class Line:
    """Places that a method acts on in the same way.

    Args:
        places: Keys of PLACES.
        seam: The call that was made.
        how: What it does to them.
        blocks: Which blocks, in words; empty outside of them.
    """

    places: list[str]
    seam: str
    how: str
    blocks: str

    def __str__(self) -> str:
        where = ", ".join(PLACES[place] for place in self.places)
        return f"{where}: {self.how}{f', {self.blocks}' if self.blocks else ''} ({self.seam})"


def lines(touches: list[Touch]) -> list[Line]:
    """Touches by what is done, in the order of the picture."""
    blocks: dict[tuple[str, str, str], set[int | None]] = {}
    for touch in touches:
        blocks.setdefault((touch.place, touch.seam, touch.how), set()).add(touch.block)
    found: dict[tuple[str, str, str], Line] = {}
    for (place, seam, how), where in sorted(blocks.items(), key=lambda item: list(PLACES).index(item[0][0])):
        words = _in_words(sorted(index for index in where if index is not None))
        found.setdefault((seam, how, words), Line([], seam, how, words)).places.append(place)
    return list(found.values())


def _in_words(blocks: list[int]) -> str:
    if not blocks:
        return ""
    if len(blocks) == DEPTH:
        return "every block"
    if blocks == list(range(1, DEPTH)):
        return "every block but the first"
    if len(blocks) == 1 and blocks[0] in (0, DEPTH - 1):
        return "first block only" if blocks[0] == 0 else "last block only"
    if blocks == list(range(DEPTH // 2, DEPTH)):
        return "upper half of the blocks"
    return f"blocks {', '.join(str(index + 1) for index in blocks)} of {DEPTH}"


@dataclass
class Recorder:
    """Stands in for the seams of one backbone and writes down what is called.

    Args:
        touches: What was called.
    """

    touches: list[Touch] = field(default_factory=list)

    def watch(self, backbone: Backbone) -> None:
        for seam, place in (
            ("edit_pixels", "pixels"),
            ("before_finish", "leaving"),
            ("edit_features", "features"),
        ):
            self._edits(backbone, f"Backbone.{seam}", seam, place, None)
        for place in ("norm", "pool"):
            self._edits(backbone, "Backbone.read_with", "read_with", place, None)
        for role, affine in backbone.family.affines.items():
            self._affine(affine, {role: role}, None)
        for index, block in enumerate(backbone.blocks):
            self._block(block, index)

    def _block(self, block: Block, index: int) -> None:
        self._edits(block, "Block.before", "before", "tokens_in", index)
        self._edits(block, "Block.after", "after", "tokens_out", index)
        for name, branch in (("attn", block.attn), ("mlp", block.mlp)):
            self._edits(branch, "Branch.edit", "edit", f"{name}_out", index)
            self._edits(branch, "Branch.edit_input", "edit_input", f"{name}_in", index)
        for role, affine in block.affines.items():
            self._affine(affine, {part: part for part in "qkv"} if role == "qkv" else {role: role}, index)
        for seam, how in (("add_keys", CHANGED), ("attend", READ), ("keys_values", READ), ("query", READ)):
            call = getattr(block, seam)
            setattr(block, seam, Noted(self, Touch("attention", f"Block.{seam}", how, index), call))

    def _edits(self, owner: Any, seam: str, name: str, place: str, block: int | None) -> None:
        setattr(owner, name, Attaching(self, getattr(owner, name), seam, place, block))

    def _affine(self, affine: Affine, parts: dict[str, str], block: int | None) -> None:
        for name in ("edit", "replace"):
            setattr(affine, name, Changing(self, affine, getattr(affine, name), f"Affine.{name}", parts, block))
        for part in parts:
            self._edits(affine, "Affine.edit_input", "edit_input", part, block)
            self._edits(affine, "Affine.edit_gradient", "edit_gradient", part, block)


@dataclass
class Noted:
    """A call that is written down and made."""

    recorder: Recorder
    touch: Touch
    call: Any

    def __call__(self, *args: Any) -> Any:
        self.recorder.touches.append(self.touch)
        return self.call(*args)


@dataclass
class Attaching:
    """A seam that takes an edit; which only reads if it gives back what it was given."""

    recorder: Recorder
    call: Any
    seam: str
    place: str
    block: int | None

    def __call__(self, edit: Any) -> None:
        touch = Touch(self.place, self.seam, CHANGED, self.block)
        self.recorder.touches.append(touch)
        self.call(Watched(touch, edit))


@dataclass
class Watched:
    """An edit whose result is compared with what it was given."""

    touch: Touch
    edit: Any

    def __call__(self, *args: Any) -> Any:
        result = self.edit(*args)
        if self.touch.place in ("norm", "pool"):
            self.touch.how = REPLACED
        else:
            self.touch.how = READ if result is args[-1] else CHANGED
        return result


@dataclass
class Changing:
    """`Affine.edit` or `.replace`; which rows of the map they change is tried out once all is attached."""

    recorder: Recorder
    affine: Affine
    call: Any
    seam: str
    parts: dict[str, str]
    block: int | None

    def __call__(self, update: Any, **options: Any) -> None:
        self.call(update, **options)
        tensors = self.affine.tensors()
        changed = torch.zeros(self.affine.shape[0], dtype=torch.bool)
        for role, tensor in tensors.items():
            changed |= (
                (getattr(update, role)(tensor) != tensor)
                .flatten(1 if tensor.ndim > 1 else 0)
                .reshape(len(tensor), -1)
                .any(dim=1)
            )
        for part, rows in zip(self.parts, changed.chunk(len(self.parts)), strict=True):
            if rows.any():
                self.recorder.touches.append(Touch(part, self.seam, CHANGED, self.block))


@functools.cache
def record(name: str) -> tuple[nn.Module, list[Touch]]:
    """Attach a method with its defaults to a small plain ViT of four blocks and run it once.

    Returns:
        The method, and what it touched.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=224, patch_size=56, embed_dim=64, depth=DEPTH, num_heads=4, num_classes=0)
        backbone = wrap(model.eval(), "a small ViT")
        (method,) = methods.build({"name": name} | _OPTIONS.get(name, {}), backbone)
        for parameter in method.parameters():  # nothing hides behind a start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
        recorder = Recorder()
        recorder.watch(backbone)
        method.eval()
        cast(methods.Method, method).attach(backbone)
        adopted = method.adopts(backbone) if isinstance(method, methods.Selective) else []
        recorder.touches += _adopted(backbone, set(adopted))
        backbone.forward(torch.randn(2, 3, 224, 224))
    return method, recorder.touches


def _adopted(backbone: Backbone, names: set[str]) -> Iterator[Touch]:
    """Parameters of the backbone that learn, by the map they are in; the others belong to the embedding."""
    mapped: dict[int, list[tuple[str, str, int | None]]] = {}
    maps = [(role, affine, None) for role, affine in backbone.family.affines.items()]
    maps += [
        (role, affine, index) for index, block in enumerate(backbone.blocks) for role, affine in block.affines.items()
    ]
    for role, affine, index in maps:
        for part in "qkv" if role == "qkv" else (role,):
            for kind, tensor in affine.tensors().items():
                mapped.setdefault(id(tensor), []).append((part, kind, index))
    found: dict[tuple[str, int | None], set[str]] = {}
    for name, parameter in backbone.model.named_parameters():
        if name in names:
            for place, kind, index in mapped.get(id(parameter), [("patch_embed", "position and class token", None)]):
                found.setdefault((place, index), set()).add(kind)
    for (place, index), kinds in found.items():
        ordered = [kind for kind in ("weight", "bias", "position and class token") if kind in kinds]
        yield Touch(place, f"adopts {', '.join(ordered)}", LEARNS, index)
