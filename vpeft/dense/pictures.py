"""What TensorBoard shows of a segmentation test: predictions beside the ground truth, and the IoU of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpeft.data.masks import ClassTable
from vpeft.dense.iou import Scores

VOID = (224, 224, 192)  # PASCAL VOC's colour of what has no class; black is its background

Kept = tuple[Tensor, Tensor, Tensor]  # image, ground truth, prediction


class SegmentedPictures:
    """Image, ground truth and prediction in the colours of the classes, and two tables.

    Args:
        table: Names and colours of the classes.
    """

    def __init__(self, table: ClassTable) -> None:
        self.table = table

    def keep(self, batch: Any, outputs: Any, row: int) -> Kept:
        return batch["image"][row].cpu(), batch["mask"][row].cpu(), outputs[row].cpu()

    def show(self, task: Any, kept: list[list[Kept]], board: Any, step: int) -> None:
        board.add_figure("test/predictions", figure(kept[0], self.table), step)
        board.add_text("test/iou", iou_table(task.classes, task.evaluation.scores), step)
        board.add_text("parameters", parameter_table(task), step)


def figure(kept: list[Kept], table: ClassTable, columns: int = 2) -> Any:
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
        seen |= set(torch.cat([mask.unique(), predicted.unique()]).tolist())
    named = sorted(seen - {table.ignore})[:24]  # more colours than this cannot be told apart
    shades = [(table.names[one], table.colours[one]) for one in named]
    if table.ignore in seen:
        shades.append(("ignored", VOID))
    patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name) for name, colour in shades]
    if patches:
        made.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return made


def colours(mask: Tensor, table: ClassTable) -> np.ndarray:
    """Class ids [H W] in the colours of the table, uint8 [H W 3]; what is ignored in VOID."""
    palette = np.array([*table.colours, VOID], dtype=np.uint8)
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
