"""The affine maps y = W x + b of a backbone: the seam that changes one of them, and its hooks.

Part of `vpeft/seams.py`, whose docstring lists all seams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TokenEdit = Callable[[Tensor], Tensor]
OutputEdit = Callable[[Tensor, Tensor], Tensor]


class Merged(Protocol):
    """A change of one affine map, stated on its weight and bias."""

    def weight(self, w: Tensor) -> Tensor: ...
    def bias(self, b: Tensor) -> Tensor: ...


class Update(Merged, Protocol):
    """A change of one affine map, stated twice: on its output, and on its weight and bias.

    The two must agree. Training uses `output`, which needs no gradient of the full weight; merging
    uses `weight` and `bias`, and so do maps that torch reads as tensors and never calls.
    """

    def output(self, x: Tensor, y: Tensor) -> Tensor: ...


@dataclass
class Affine:
    """y = W x + b, held as two parameters of `owner`.

    Args:
        owner: Module that holds the parameters.
        weight: Name of W in `owner`; shape (out, in), (out, in, kh, kw) or, for a norm, (out,).
        bias: Name of b in `owner`.
        called: False where torch reads W as a tensor, so that no forward hook ever fires.
        channels: Axis of `y` that holds the outputs.
        absorbs: What is added to `y` right afterwards and can take a shift of it where there is no bias:
            an owner, the name of its tensor (..., N, out), and the first of the N rows that meet a `y`.
        updates: What has been attached so far, in order.
        read: Whether one of them reads W and b themselves while it trains, so that they stay as exact as they are
            (`vpeft.frozen`).
    """

    owner: nn.Module
    weight: str = "weight"
    bias: str = "bias"
    called: bool = True
    channels: int = -1
    absorbs: tuple[nn.Module, str, int] | None = None
    updates: list[Merged] = field(default_factory=list)
    read: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W: (out, in, ...), or (out,) for a norm."""
        return tuple(getattr(self.owner, self.weight).shape)

    @property
    def scalable(self) -> bool:
        """Whether an update of y reaches all of y: not where torch reads W and keeps biases elsewhere."""
        return self.called or getattr(self.owner, self.bias) is not None

    def tensors(self) -> dict[str, Tensor]:
        """W and b as they are stored, by role; b only where there is one."""
        found = {role: _stored(self.owner, name) for role, name in self._names().items()}
        return {role: tensor for role, tensor in found.items() if tensor is not None}

    def _names(self) -> dict[str, str]:
        return {"weight": self.weight, "bias": self.bias}

    def edit(self, update: Update, reads: bool = False) -> None:
        """Change y; an update whose `output` reads the tensors of this map says so."""
        self.updates.append(update)
        self.read |= reads
        if self.called:
            self.owner.register_forward_hook(_OnOutput(update.output, self.channels))
        else:
            self._parametrize(update)

    def replace(self, update: Merged) -> None:
        """Compute y with update.weight(W) and update.bias(b) while training too.

        For changes that have no cheaper form on the output, and for norms. The keys of W and b stay.
        """
        self.updates.append(update)
        self.read = True
        if self.called:
            tensors = _OnTensors(update, self._names())
            self.owner.register_forward_pre_hook(tensors.enter)
            # The last that came leaves first: it has stored what those before it put there.
            self.owner.register_forward_hook(tensors.leave, prepend=True, always_call=True)
        else:
            self._parametrize(update)

    def edit_gradient(self, edit: OutputEdit) -> None:
        """Let edit(x, y) take the gradient of y = W x + b; it returns the numbers of y, before any other edit of them.

        Raises:
            ValueError: torch reads this W as a tensor, so that nobody ever sees its x.
        """
        self._must_be_called()
        self.owner.register_forward_hook(_OnOutput(edit, self.channels), prepend=True)

    def _parametrize(self, update: Merged) -> None:
        for role, name in self._names().items():
            if getattr(self.owner, name) is not None:
                parametrize.register_parametrization(self.owner, name, _OnTensor(update, role))

    def edit_input(self, edit: TokenEdit) -> None:
        """Change x in y = W x + b.

        Raises:
            ValueError: torch reads this W as a tensor, so that nobody ever sees its x.
        """
        self._must_be_called()
        self.owner.register_forward_pre_hook(_OnInput(edit))

    def _must_be_called(self) -> None:
        if not self.called:
            raise ValueError(
                f"{type(self.owner).__name__} reads '{self.weight}' as a tensor, so that its input is never seen. Take "
                "the same weights from timm."
            )

    @torch.no_grad()
    def merge(self, update: Merged) -> None:
        """Write the update into W and b, in place."""
        w, b = _stored(self.owner, self.weight), _stored(self.owner, self.bias)
        w.copy_(update.weight(w))
        if b is not None:
            b.copy_(update.bias(b))
            return
        shift = update.bias(w.new_zeros(len(w)))
        if self.absorbs is not None:
            owner, name, first = self.absorbs
            getattr(owner, name)[..., first:, :] += shift
        elif shift.any():
            raise ValueError(
                f"This method adds a bias to a {type(self.owner).__name__} that has none, so it cannot be merged "
                "into the backbone's own weights. Use the adapter unmerged."
            )

    @torch.no_grad()
    def merge_input(self, matrix: Tensor, shift: Tensor) -> None:
        """Write x -> matrix x + shift, a change of what the map reads, into W and b, in place."""
        self.merge(_OfInput(matrix, _stored(self.owner, self.weight) @ shift))


def _stored(owner: nn.Module, name: str) -> Any:
    """The tensor behind a possibly parametrized name."""
    if parametrize.is_parametrized(owner, name):
        return owner.parametrizations[name].original  # type: ignore[index]
    return getattr(owner, name)


@dataclass
class _OnOutput:
    edit: OutputEdit
    channels: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if self.channels == -1:
            return self.edit(args[0], y)
        return self.edit(args[0], y.movedim(self.channels, -1)).movedim(-1, self.channels)


@dataclass
class _OnInput:
    edit: TokenEdit

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.edit(args[0]), *args[1:])


@dataclass
class _OfInput:
    matrix: Tensor
    shift: Tensor  # W c, of the W before it is changed

    def weight(self, w: Tensor) -> Tensor:
        return w @ self.matrix

    def bias(self, b: Tensor) -> Tensor:
        return b + self.shift


@dataclass
class _OnTensors:
    """The changed tensors stand in for the stored ones from the call of the owner to its return."""

    update: Merged
    names: dict[str, str]
    stored: dict[str, Any] = field(default_factory=dict)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for role, name in self.names.items():
            tensor = module._parameters[name]
            if tensor is not None:
                self.stored[name] = tensor
                module._parameters[name] = getattr(self.update, role)(tensor)

    def leave(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        for name, tensor in self.stored.items():
            module._parameters[name] = tensor
        self.stored.clear()


class _OnTensor(nn.Module):
    def __init__(self, update: Merged, which: str) -> None:
        super().__init__()
        self._change = [getattr(update, which)]  # in a list: the method, not the backbone, owns the update

    def forward(self, tensor: Tensor) -> Tensor:
        return self._change[0](tensor)
