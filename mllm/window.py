"""What an in-layer connector keeps of a batch it looked at, and which part of that a forward of the model covers.

Under generation the model first runs the whole prompt and then single positions, its cache holding the columns before
them; beam search repeats the rows.

Shapes: B rows and L columns that were looked at, B' rows and T columns of a forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from mllm.shapes import Layout

T = TypeVar("T")


class Kept(Generic[T]):
    """Something kept from one call to a later one. Copies are empty: tensors of a graph cannot be copied."""

    def __init__(self, missing: str) -> None:
        self.missing = missing
        self.value: T | None = None

    def get(self) -> T:
        """
        Raises:
            RuntimeError: nothing is kept.
        """
        if self.value is None:
            raise RuntimeError(self.missing)
        return self.value

    def take(self) -> T:
        value, self.value = self.get(), None
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.missing,))


class Rows(NamedTuple):
    """Positions of a forward, as numbers within B' T: those that stay, those that go, and the order that joins them."""

    stay: Tensor
    go: Tensor
    order: Tensor

    @classmethod
    def of(cls, go: Tensor) -> Rows:
        """From a mask [B' T]."""
        stay, taken = (~go).flatten().nonzero()[:, 0], go.flatten().nonzero()[:, 0]
        return cls(stay, taken, torch.cat([stay, taken]).argsort())


class Window:
    """Which of the L columns of a layout a forward covers.

    The first forward may cover more than what was looked at: virtual tokens (prefix and prompt tuning) stand before it.
    Columns behind the L are text that the model generated. Rows repeated for beams stand beside each other.

    Args:
        features: [I N D], of the images of the layout.
        layout: What is looked at.

    Raises:
        ValueError: there are not as many features as images.
    """

    def __init__(self, features: Tensor, layout: Layout) -> None:
        if len(features) != len(layout.row):
            raise ValueError(
                f"look() was given {len(features)} features of images and a layout of {len(layout.row)} images; it "
                "needs one for each."
            )
        self.rows, self.columns = layout.time.shape
        self.virtual: int | None = None
        self._last: tuple[tuple[int, ...], Any] = ((), None)

    def start(self, x: Tensor, first: int) -> int:
        """The column at which x [B' T ...] begins: below 0 at virtual tokens, L and more at generated text."""
        if self.virtual is None:
            self.virtual = max(0, first + x.shape[1] - self.columns)
        return first - self.virtual

    def beams(self, x: Tensor) -> int:
        """B' / B for x [B' ...].

        Raises:
            ValueError: B' is no multiple of B.
        """
        if len(x) % self.rows:
            raise ValueError(
                f"The language model runs {len(x)} sequences, and a connector looked at {self.rows}. Call look() with "
                "the layout of the batch that runs; with beams it runs a multiple of them."
            )
        return len(x) // self.rows

    def take(self, values: Tensor, x: Tensor, first: int, lasts: bool = False) -> Tensor:
        """The columns of values [B L] that belong to x [B' T ...]: [B' T], 0 outside of the L.

        Args:
            values: Of the columns that were looked at.
            x: Tokens of this forward.
            first: Columns before them in the cache.
            lasts: Generated text has the value of the last column.
        """
        start = self.start(x, first)
        columns = torch.arange(start, start + x.shape[1], device=values.device)
        inside = columns >= 0 if lasts else (columns >= 0) & (columns < self.columns)
        taken = values[:, columns.clamp(0, self.columns - 1)] * inside
        return taken.repeat_interleave(self.beams(x), dim=0)

    def once(self, x: Tensor, first: int, make: Callable[[], T]) -> T:
        """What `make` gives, asked for once in a forward although every layer asks."""
        key = (first, *x.shape[:2])
        if self._last[0] != key:
            self._last = (key, make())
        return self._last[1]
