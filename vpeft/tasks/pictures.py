"""Some images of a test, kept while it runs and sent to TensorBoard at its end."""

from __future__ import annotations

from typing import Any, Protocol

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger


class Shown(Protocol):
    """What a kind of run makes of test images."""

    def keep(self, batch: Any, outputs: Any, row: int) -> Any:
        """What is kept, on the CPU, of one image of a batch and of what `test_step` gave for it."""
        ...

    def show(self, task: Any, kept: list[list[Any]], board: Any, step: int) -> None:
        """Send pictures and tables to TensorBoard's writer.

        Args:
            task: The LightningModule, with its evaluation.
            kept: Images in their order, of each test loader.
            board: TensorBoard's writer.
            step: Of the run.
        """
        ...


class TestPictures(L.Callback):
    """Keeps test images of every loader and shows them in the first process, of those that this process sees.

    Batches hold {index: [B]}, places in the order of their split.

    Args:
        shown: What is kept of them, and how it is shown.
        count: Images of a loader, evenly spaced.
    """

    def __init__(self, shown: Shown, count: int) -> None:
        self.shown, self.count = shown, count
        self._places: list[set[int]] = []
        self._kept: list[list[Any]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        given: Any = trainer.test_dataloaders
        loaders = given if isinstance(given, list) else [given]
        world = trainer.world_size
        self._places = []
        for share in (len(loader.dataset) // world for loader in loaders):  # the first process has every world-th image
            places = np.linspace(0, share - 1, min(self.count, share))
            self._places.append({world * round(place) for place in places})
        self._kept = [[] for _ in loaders]

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row, at in enumerate(batch["index"].tolist()):
            if at in self._places[dataloader_idx]:
                self._kept[dataloader_idx].append(self.shown.keep(batch, outputs, row))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            self.shown.show(pl_module, self._kept, trainer.logger.experiment, trainer.global_step)
