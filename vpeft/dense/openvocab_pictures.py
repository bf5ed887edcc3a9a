"""What TensorBoard shows of an open-vocabulary test, for each of its data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpeft.data.masks import ClassTable
from vpeft.dense.pictures import Kept, figure, iou_table


class VocabularyPictures:
    """Image, ground truth and prediction of some images of every data set, and the IoU of its classes.

    Args:
        tables: Names and colours of the classes of every data set, in the order of the loaders.
    """

    def __init__(self, tables: Mapping[str, ClassTable]) -> None:
        self.tables = tables

    def keep(self, batch: Any, outputs: Any, row: int) -> Kept:
        return batch["image"][row].cpu(), batch["mask"][row].cpu(), outputs[row].cpu()

    def show(self, task: Any, kept: list[list[Kept]], board: Any, step: int) -> None:
        for (name, table), images in zip(self.tables.items(), kept, strict=True):
            board.add_figure(f"test/{name}/predictions", figure(images, table), step)
            board.add_text(f"test/{name}/iou", iou_table(table.names, task.evaluation[name]), step)
