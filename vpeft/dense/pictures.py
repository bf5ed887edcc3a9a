"""What TensorBoard shows of a segmentation test: predictions beside the ground truth, and the IoU of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from vpeft.data.masks import ClassTable
from vpeft.dense.iou import Scores

IGNORED = (0, 0, 0)


class SegmentedPictures(L.Callback):
    """Sends image, ground truth and prediction of some test images, and two tables, to TensorBoard.

    Args:
        table: Names and colours of the classes.
        count: Images, evenly spaced over the test split.
    """

    def __init__(self, table: ClassTable, count: int = 12) -> None:
        self.table, self.count = table, count
        self._places: set[int] = set()
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images = len(trainer.test_dataloaders.dataset)  # type: ignore[union-attr]
        self._places = {round(place) for place in np.linspace(0, images - 1, min(self.count, images))}
        self._kept = []

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
            if at in self._places:
                self._kept.append((batch["image"][row].cpu(), batch["mask"][row].cpu(), outputs[row]))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            return
        task: Any = pl_module
        board, step = trainer.logger.experiment, trainer.global_step
        board.add_figure("test/predictions", figure(self._kept, self.table), step)
        board.add_text("test/iou", iou_table(task.classes, task.evaluation.scores), step)
        board.add_text("parameters", parameter_table(task), step)


def figure(kept: list[tuple[Tensor, Tensor, Tensor]], table: ClassTable, columns: int = 2) -> Any:
    """Rows of image, ground truth and prediction, and the names of the colours that occur."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = max(1, -(-len(kept) // columns))
    made = Figure(figsize=(5.4 * columns, 1.95 * rows + 0.6), dpi=110, layout="constrained")
    axes = made.subplots(rows, 3 * columns, squeeze=False).flat
    for axis in axes:
        axis.set_axis_off()
    seen: set[int] = set()
    for place, (image, mask, predicted) in enumerate(kept):
        shown = [image.permute(1, 2, 0).numpy(), colours(mask, table), colours(predicted, table)]
        for part, (picture, title) in enumerate(zip(shown, ("image", "ground truth", "prediction"), strict=True)):
            axis = made.axes[3 * place + part]
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=8, pad=3)
        seen |= {one for one in torch.cat([mask.unique(), predicted.unique()]).tolist() if one != table.ignore}
    named = sorted(seen)[:24]  # more colours than this cannot be told apart
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*table.colours[one]), label=table.names[one]) for one in named]
    if patches:
        made.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return made


def colours(mask: Tensor, table: ClassTable) -> np.ndarray:
    """Class ids [H W] in the colours of the table, uint8 [H W 3]; what is ignored is black."""
    palette = np.array([*table.colours, IGNORED], dtype=np.uint8)
    return palette[np.where(mask.numpy() == table.ignore, len(table.colours), mask.numpy())]


def iou_table(classes: Sequence[str], found: Scores) -> str:
    """IoU and accuracy of every class, and their means, in Markdown."""
    lines = ["| class | IoU | accuracy |", "|---|---:|---:|"]
    for name, iou, acc in zip(classes, found.iou, found.acc, strict=True):
        lines.append(f"| {name} | {_percent(iou)} | {_percent(acc)} |")
    return "\n".join([*lines, f"| **mean** | **{_percent(found.miou)}** | **{_percent(found.macc)}** |"])


def parameter_table(task: Any) -> str:
    """Trained parameters of every part, in Markdown."""
    lines = ["| part | trained |", "|---|---:|"]
    for part, parameters in task.tuned.parameter_groups().items():
        lines.append(f"| {part} | {sum(p.numel() for _, p in parameters):,} |")
    frozen = sum(p.numel() for p in task.tuned.parameters() if not p.requires_grad)
    return "\n".join([*lines, f"| frozen | {frozen:,} |"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
