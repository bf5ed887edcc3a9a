"""What a method can do beside being attached, as protocols that are found by their methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.tuned import Tuned


class Method(Protocol):
    """What every entry of METHODS is, besides an nn.Module."""

    def attach(self, backbone: Backbone) -> None:
        """Wire the method into the backbone's seams."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@runtime_checkable
class Selective(Protocol):
    """A method that trains parameters of the backbone."""

    def adopts(self, backbone: Backbone) -> list[str]:
        """Names in the vendor's model of the parameters to train."""
        ...


@runtime_checkable
class Mergeable(Protocol):
    """A method whose change can be written into the backbone's weights.

    One that multiplies the whole of a map from outside, at the end of its branch, says `merges_last = True`:
    wherever it stands in the list, other methods change the map inside of it.
    """

    def merge(self, backbone: Backbone) -> None:
        """Add the method to the backbone's weights, in place."""
        ...


@runtime_checkable
class MergingInputs(Protocol):
    """A method that changes what maps read, which can be written into their weights."""

    def merge_inputs(self, backbone: Backbone) -> None:
        """Write it in, after every `merge`: whatever else changes the map reads the changed input too.

        Called from the last method of the list to the first, since the first acts on the input first.
        """
        ...


@runtime_checkable
class Widening(Protocol):
    """A method that hands the head more than the backbone's features."""

    added_features: int


@runtime_checkable
class Preparing(Protocol):
    """A method that looks at the training images before it trains on them."""

    def prepare(self, tuned: Tuned, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Called before every epoch, counted from 0; what is found belongs in buffers or parameters.

        Args:
            tuned: The whole model, in eval mode; gradients may be taken and are dropped afterwards.
            batches: Normalised training images [B, 3, H, W] and labels [B], all of them, each time it is iterated,
                in the order of the split.
            epoch: Of the run. A resumed run calls this only before epochs that it starts.
        """
        ...


@runtime_checkable
class Penalised(Protocol):
    """A method that adds a term to the training loss."""

    def penalty(self) -> Tensor:
        """The term, a scalar."""
        ...


@runtime_checkable
class Packing(Protocol):
    """A method whose adapter is smaller in another form than its tensors."""

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a file holds of the method.

        Args:
            state: The method's own `state_dict`, on the CPU.
        """
        ...

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """A `state_dict` with which the method computes, to the bit, what it did when it was packed."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """A method that acts between the gradients and the optimiser."""

    def after_backward(self, step: int, steps: int) -> None:
        """Called when all gradients of optimiser step `step` of `steps` (from 0) are there, before clipping."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimiser has changed the parameters."""
        ...


@runtime_checkable
class Cacheable(Protocol):
    """A method under which the frozen part of the model makes the same of an image in every epoch."""

    def frozen(self, backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        """All that it needs to know of normalised images [B, 3, H, W]; each tensor [B, ...], without a gradient."""
        ...

    def features(self, *frozen: Tensor) -> Tensor:
        """What the head sees of images of which `frozen` is known."""
        ...
