"""A frozen backbone, the methods on it, and a head: the model that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vpeft import frozen
from vpeft.backbones import Backbone
from vpeft.methods import Mergeable, MergingInputs, Selective, name_of
from vpeft.modules import Modules
from vpeft.queries import link


class Tuned(nn.Module):
    """Freezes the backbone and attaches methods to it, in the order of the list.

    What is trained follows from ownership: the parameters of the methods and of the head, and those
    of the backbone that a selective method adopts. `forward` maps normalised images [B, 3, H, W] to
    the head's output.

    Args:
        backbone: Is changed: its parameters are frozen and the methods hook into it.
        methods: Built for this backbone, not attached yet.
        head: Takes features [B, backbone.dim], or what the neck gives.
        neck: Runs the backbone itself and gives maps of several strides (`vpeft.dense.necks`), for dense prediction.
        drop_path: Stochastic depth of the backbone's branches while training, 0 at the first block and
            this much at the last.

    Raises:
        ValueError: a method has nothing to train, or makes queries that no head takes (`vpeft.queries`).
    """

    def __init__(
        self,
        backbone: Backbone,
        methods: Sequence[nn.Module],
        head: nn.Module,
        drop_path: float = 0.0,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.methods = nn.ModuleList(methods)
        self.neck, self.head = neck, head
        self.adopted: list[str] = neck.adopts(backbone) if isinstance(neck, Selective) else []
        self.drop_path = Modules[_DropBranch]()
        if drop_path:
            self._drop_paths(drop_path)  # first, so that what a method adds is not dropped with the branch
        parameters = dict(backbone.model.named_parameters())
        # Before any method attaches: one that parametrizes a tensor changes its name.
        adopted = [method.adopts(backbone) if isinstance(method, Selective) else None for method in methods]
        past_the_blocks: list[str] = []
        for method, names in zip(methods, adopted, strict=True):
            before = backbone.edits_of_features
            try:
                method.attach(backbone)  # type: ignore[operator]
            except ValueError as error:
                if len(methods) == 1:
                    raise
                listed = ", ".join(name_of(one) for one in methods)
                raise ValueError(f"{error} The methods are {listed}, attached in this order.") from error
            if backbone.edits_of_features > before:
                past_the_blocks.append(name_of(method))
            if names is not None:
                if not names:
                    raise ValueError(f"{type(method).__name__} found nothing to train in {backbone.name}.")
                self.adopted += [name for name in names if name not in self.adopted]
        if neck is not None and past_the_blocks:
            raise ValueError(
                f"{' and '.join(past_the_blocks)} changes what is read from the last block as features, which a neck "
                "does not read. Use a method that acts on the blocks, or kind: classification."
            )
        link(methods, head)
        for name in self.adopted:
            parameters[name].requires_grad_(True)
        # Parametrized tensors change their names; adopted ones are found again under the new ones.
        renamed = {id(p): name for name, p in backbone.model.named_parameters()}
        self.adopted = [renamed[id(parameters[name])] for name in self.adopted]

    def _drop_paths(self, rate: float) -> None:
        blocks = self.backbone.blocks
        for index, block in enumerate(blocks):
            drop = _DropBranch(rate * index / max(1, len(blocks) - 1))
            self.drop_path.append(drop)
            block.attn.edit(drop)
            block.mlp.edit(drop)

    def train(self, mode: bool = True) -> Tuned:
        """Set training mode of methods and head; the backbone's own dropout and drop-path stay off."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor, *targets: Tensor) -> Any:
        """What the head makes of images, and of targets where it has a loss of its own (`vpeft.dense.decoders`)."""
        seen = self.backbone(images) if self.neck is None else self.neck(self.backbone, images)
        return self.head(seen, *targets)

    def delta(self) -> dict[str, Tensor]:
        """What training changes: all of methods, neck and head, buffers too, and adopted backbone parameters."""
        return {key: value for key, value in self.state_dict().items() if self._in_delta(key)}

    def load_delta(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `delta` gave.

        Raises:
            ValueError: tensors are missing, unknown or of another shape.
        """
        if wrong := difference(self.delta(), state):
            raise ValueError(f"This adapter is not of this backbone and these methods: {wrong}.")
        self.load_state_dict(dict(state), strict=False)

    def _in_delta(self, key: str) -> bool:
        if not key.startswith("backbone."):
            return True
        return key.removeprefix("backbone.model.") in self.adopted

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by component: `method`, `neck`, `backbone` (adopted ones) and `head`."""
        component = {"methods": "method", "neck": "neck", "backbone": "backbone", "head": "head"}
        found: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in component.values()}
        for name, parameter in self.trainable():
            found[component[name.partition(".")[0]]].append((name, parameter))
        return found

    def levels(self) -> dict[int, int]:
        """Depth of every parameter of the backbone, by its id.

        0 before the first block, the number of a block (from 1) in it and between it and the next, and one more than
        there are blocks from the last norm on.
        """
        blocks = [block.module for block in self.backbone.blocks]
        found = {id(p): index + 1 for index, block in enumerate(blocks) for p in block.parameters()}
        last = {id(p) for p in self.backbone.family.norm.parameters()}
        level = 0
        for parameter in self.backbone.model.parameters():  # in the order of the model, as it was built
            level = found.setdefault(id(parameter), len(blocks) + 1 if id(parameter) in last else level)
        return found

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def merge(self) -> dict[str, Tensor]:
        """The backbone's own state dict with the methods written into it, under the vendor's keys.

        Raises:
            ValueError: a method cannot be merged; it is named. Frozen weights are stored in bfloat16.
        """
        stuck = [type(method).__name__ for method in self.methods if not isinstance(method, Mergeable | MergingInputs)]
        if stuck:
            raise ValueError(
                f"{' and '.join(stuck)} cannot be merged: what it computes is not a change of the backbone's weights. "
                "Use the adapter beside the backbone."
            )
        if rounded := frozen.count(self):
            raise ValueError(
                f"{rounded:,} of the backbone's numbers are stored in bfloat16, and merged weights would be rounded "
                "with them. Load the adapter on weights in single precision and merge that (tools/merge.py does)."
            )
        twin = copy.deepcopy(self)
        for method in sorted(twin.methods, key=lambda method: getattr(method, "merges_last", False)):
            if isinstance(method, Mergeable):
                method.merge(twin.backbone)
        for method in reversed(twin.methods):
            if isinstance(method, MergingInputs):
                method.merge_inputs(twin.backbone)
        return plain_state_dict(twin.backbone.model)


def difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """In words, how the tensors of an adapter are not those that a model has for it; empty if they are."""
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    what = [f"it lacks {len(missing)} tensors ({missing[0]}, ...)"] if missing else []
    what += [f"it holds {len(extra)} that are not of this model ({extra[0]}, ...)"] if extra else []
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    if other and not what:
        key = other[0]
        what = [f"{key} is {list(state[key].shape)} in the adapter and {list(own[key].shape)} in the model"]
    return "; ".join(what)


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A state dict under the names it had before any parametrization."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor in module.parametrizations:  # type: ignore[union-attr]
            prefix = f"{name}." if name else ""
            state[f"{prefix}{tensor}"] = state.pop(f"{prefix}parametrizations.{tensor}.original")
    return state


class _DropBranch(nn.Module):
    """Stochastic depth as an edit of a branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = DropPath(rate)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return self.drop(y)
