"""What TensorBoard shows of an open-vocabulary test, for each of its data sets."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from vpeft.data.masks import ClassTable
from vpeft.dense.pictures import figure, iou_table


class VocabularyPictures(L.Callback):
    """Sends image, ground truth and prediction of some images of every data set, and the IoU of its classes.

    Args:
        tables: Names and colours of the classes of every data set, in the order of the loaders.
        count: Images of each, evenly spaced.
    """

    def __init__(self, tables: dict[str, ClassTable], count: int = 8) -> None:
        self.tables, self.count = tables, count
        self._places: list[set[int]] = []
        self._kept: list[list[tuple[Tensor, Tensor, Tensor]]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loaders: Any = trainer.test_dataloaders
        lengths = [len(loader.dataset) for loader in loaders]
        self._places = [{round(at) for at in np.linspace(0, n - 1, min(self.count, n))} for n in lengths]
        self._kept = [[] for _ in lengths]

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch["index"].item() in self._places[dataloader_idx]:
            shown = (batch["image"][0].cpu(), batch["mask"][0].cpu(), outputs[0].cpu())
            self._kept[dataloader_idx].append(shown)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            return
        task: Any = pl_module
        board, step = trainer.logger.experiment, trainer.global_step
        for (name, table), kept in zip(self.tables.items(), self._kept, strict=True):
            board.add_figure(f"test/{name}/predictions", figure(kept, table), step)
            board.add_text(f"test/{name}/iou", iou_table(table.names, task.evaluation[name]), step)
