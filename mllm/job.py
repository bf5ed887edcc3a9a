"""What `mllm.run` needs to know of a kind of run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Trained(Protocol):
    """A model of which some parts learn."""

    def delta(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        ...

    def components(self) -> dict[str, Sequence[tuple[str, nn.Parameter]]]:
        """Named trainable parameters under `vision`, `connector`, `language`, `embeddings`; all keys are there."""
        ...

    def totals(self) -> dict[str, int]:
        """Parameters of the same components, frozen ones too."""
        ...


class Job(Protocol):
    """One run, built and not started.

    Attributes:
        task: A LightningModule: `task.model` is a `Trained`, `task.evaluation` holds what the last validation or test
            measured as plain numbers, `score` among them for the one that matters.
        data: A LightningDataModule with `provenance` and `preparation` for the row.
    """

    task: Any
    data: Any

    def save(self, path: Path, row: Mapping[str, Any]) -> None:
        """Write the adapter."""
        ...

    def said(self) -> dict[str, Any]:
        """What a row says of this kind: backbone, language model, connector, methods, weights."""
        ...


@dataclass(frozen=True)
class Measures:
    """What an evaluation found.

    Args:
        loss: Mean over trained tokens, or over samples.
        score: What matters, in 0..1; None where nothing but the loss was measured.
        values: Everything, as plain numbers by name.
    """

    loss: float
    score: float | None
    values: dict[str, Any]
