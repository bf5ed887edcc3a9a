"""What `vpeft.run` needs to know of a kind of run: the model that trains, its data and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import lightning.pytorch as L
from torch import Tensor

from vpeft.tuned import Tuned


class Measured(Protocol):
    """What a validation or a test found."""

    metric: ClassVar[str]  # name of `score` in a row

    @property
    def loss(self) -> float: ...

    @property
    def score(self) -> float: ...  # what an epoch is chosen by, in 0..1

    @property
    def per_class(self) -> list[float | None]: ...

    def measures(self) -> dict[str, Any]: ...  # plain numbers for a row


class Task(Protocol):
    """A LightningModule whose checkpoint holds only what is trained."""

    tuned: Tuned
    classes: list[str]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    evaluation: Measured | None


class Data(Protocol):
    """A LightningDataModule that says where its images come from and how they are prepared."""

    provenance: dict[str, Any]

    @property
    def preparation(self) -> dict[str, Any]: ...


class Elsewhere(Protocol):
    """Computes what a model makes of images, in the place of the model itself."""

    def features(self, images: Tensor) -> Tensor:
        """What the head sees [B, C] of normalised images [B, 3, H, W]; their gradient ends at it."""
        ...

    def backward(self) -> None:
        """Goes on with the gradient from there."""
        ...


@dataclass(frozen=True)
class Job:
    """One run, built and not started.

    Args:
        task: A `Task`.
        data: A `Data`.
        pictures: Sends pictures of the test to TensorBoard.
        seat: Its place among runs that are trained together (`vpeft.packed`).
    """

    task: Any
    data: Any
    pictures: L.Callback
    seat: L.Callback | None = None
