"""What TensorBoard shows of a multi-task test: every task's prediction beside the ground truth, and the measures.

Shapes: K outputs, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vpeft.data.masks import voc_colour
from vpeft.dense.multitask_metrics import IGNORED
from vpeft.dense.pictures import VOID, parameter_table


class MultiTaskPictures:
    """Every task's prediction beside its ground truth, and tables."""

    def keep(self, batch: Any, outputs: Any, row: int) -> dict[str, Tensor]:
        truth = {task: batch[task][row].cpu() for task in outputs}
        guess = {f"{task}, predicted": output[row].cpu() for task, output in outputs.items()}
        return {"image": batch["image"][row].cpu(), **truth, **guess}

    def show(self, task: Any, kept: list[list[dict[str, Tensor]]], board: Any, step: int) -> None:
        board.add_figure("test/predictions", figure(kept[0], task.tasks), step)
        board.add_text("test/measures", _measures(task), step)
        board.add_text("test/iou", _iou(task), step)
        board.add_text("parameters", parameter_table(task), step)


def figure(kept: list[dict[str, Tensor]], tasks: dict[str, int]) -> Any:
    """A row an image: itself, and of each task the ground truth and the prediction.

    Args:
        kept: image, `<task>` (its label) and `<task>, predicted` (its output [K H W]), on the CPU.
        tasks: Outputs K of each.
    """
    from matplotlib.figure import Figure

    columns = 1 + 2 * len(tasks)
    made = Figure(figsize=(1.75 * columns, 1.95 * max(1, len(kept))), dpi=110, layout="constrained")
    for row, one in enumerate(kept):
        pictures = {"image": one["image"].permute(1, 2, 0).numpy()}
        for task, outputs in tasks.items():
            pictures[task] = colours(task, one[task], outputs)
            name = f"{task}, predicted"
            pictures[name] = colours(task, answer(task, one[name]), outputs)
        for column, (name, picture) in enumerate(pictures.items()):
            axis = made.add_subplot(len(kept), columns, row * columns + column + 1)
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(name.replace("_", " "), fontsize=7, pad=3)
    return made


def answer(task: str, output: Tensor) -> Tensor:
    """What an output [K H W] says, in the form of a label; saliency is a probability [H W]."""
    if task == "normals":
        return F.normalize(output.float(), dim=0)
    return output[0].float().sigmoid() if task == "saliency" else output.argmax(dim=0)


def colours(task: str, label: Tensor, outputs: int) -> np.ndarray:
    """A label as a picture, uint8 [H W 3]: classes in PASCAL VOC's colours; saliency in grey, normals as (n + 1) / 2,
    both black where there is no label."""
    if task == "normals":
        there = label.square().sum(0, keepdim=True) > 0
        return _bytes(((label + 1) / 2 * there).clamp(0, 1).permute(1, 2, 0))
    if task == "saliency":
        return _bytes(torch.where(label == IGNORED, 0.0, label.float())[..., None].expand(-1, -1, 3))
    palette = np.array([*(voc_colour(number) for number in range(outputs)), VOID], dtype=np.uint8)
    return palette[np.where(label.numpy() == IGNORED, outputs, label.numpy())]


def _bytes(shares: Tensor) -> np.ndarray:
    return (255 * shares).round().byte().numpy()


def _measures(task: Any) -> str:
    lines = ["| task | measure | |", "|---|---|---:|"]
    for name, values in task.evaluation.tasks.items():
        for measure, value in values.items():
            lines.append(f"| {name} | {measure} | {value:.2f}{'°' if measure == 'angle' else ' %'} |")
    if task.evaluation.gain is not None:
        lines.append(f"| all | relative improvement | {task.evaluation.gain:+.2f} % |")
    return "\n".join(lines)


def _iou(task: Any) -> str:
    pairs = zip(task.classes, task.evaluation.per_class_percent, strict=True)
    return "\n".join(["| class | IoU |", "|---|---:|", *(f"| {name} | {value:.1f} % |" for name, value in pairs)])
