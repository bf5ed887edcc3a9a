"""The curves of a run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger


class Curves(TensorBoardLogger):
    """Lightning's logger, which calls whatever goes wrong a value that cannot be logged, a full disk too."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except ValueError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise
