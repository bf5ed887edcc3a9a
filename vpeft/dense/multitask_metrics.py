"""What is measured of several dense tasks, and how much better they are together than alone.

    D = 100 / T sum_t (-1)^(l_t) (M_t - S_t) / S_t      l_t = 1 where less is better, S_t of a model of t alone

Counts are summed over all images of an evaluation, and over processes, before anything is divided.

Shapes: B images, K classes, H W pixels, Q thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255

# The measure that stands for a task, and whether less of it is better.
PRIMARY: dict[str, tuple[str, bool]] = {
    "semseg": ("miou", False),
    "human_parts": ("miou", False),
    "saliency": ("miou", False),
    "normals": ("angle", True),
}


class Meter(Protocol):
    """Sums over the images of an evaluation."""

    sums: Tensor

    def update(self, output: Tensor, label: Tensor) -> None:
        """Count outputs [B, K, H, W] against labels."""
        ...

    def values(self) -> dict[str, float]:
        """Measures of all that was counted."""
        ...


class Classes:
    """Mean intersection over union over all K classes, in percent; a class that is nowhere counts as 0.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums = torch.zeros(classes, classes, dtype=torch.float64)

    def update(self, output: Tensor, label: Tensor) -> None:
        valid = label != IGNORED
        pairs = label[valid] * self.classes + output.argmax(dim=1)[valid]
        self.sums += torch.bincount(pairs.cpu(), minlength=self.classes**2).view_as(self.sums)

    def per_class(self) -> list[float]:
        """Intersection over union of each class, in percent."""
        hits = self.sums.diag()
        return (100 * hits / (self.sums.sum(0) + self.sums.sum(1) - hits).clamp(min=1)).tolist()

    def values(self) -> dict[str, float]:
        found = self.per_class()
        return {"miou": sum(found) / len(found)}


class Saliency:
    """The largest, over 15 thresholds of probability, of the mean over images of the intersection over union, and of F.

    As in scale-lab/MTLoRA @ 333a375: F is of precision and recall that are each a mean over images, and beta is 1; an
    image without anything salient, in label and output, counts as 1. In percent.
    """

    def __init__(self) -> None:
        self.thresholds = torch.linspace(0.2, 0.9, 15)
        self.sums = torch.zeros(4, len(self.thresholds), dtype=torch.float64)  # iou, precision, recall, images

    def update(self, output: Tensor, label: Tensor) -> None:
        label = label.cpu().flatten(1)[:, None]
        valid, truth = label != IGNORED, label == 1
        found = output.detach().cpu().float().sigmoid().flatten(1)[:, None] > self.thresholds[:, None]  # B Q HW
        found = found & valid
        hits, either = (found & truth).sum(-1).double(), (found | truth).sum(-1)
        iou = torch.where(either > 0, hits / either.clamp(min=1), 1.0)
        precision = hits / found.sum(-1).clamp(min=1)
        recall = hits / truth.sum(-1).clamp(min=1)
        self.sums += torch.stack([iou, precision, recall, torch.ones_like(iou)]).sum(1)

    def values(self) -> dict[str, float]:
        iou, precision, recall, images = self.sums
        f = 2 * precision * recall / (images * (precision + recall)).clamp(min=1e-12)
        return {"miou": 100 * (iou / images).max().item(), "max_f": 100 * f.max().item()}


class Normals:
    """Mean angle between predicted and true vectors in degrees, where the true one is not 0."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # degrees, pixels

    def update(self, output: Tensor, label: Tensor) -> None:
        cosine = (F.normalize(output.float(), dim=1) * label).sum(1).clamp(-1, 1)
        valid = label.square().sum(1) > 0
        angles = torch.rad2deg(torch.acos(cosine))[valid]
        self.sums += torch.tensor([angles.double().sum().item(), valid.sum().item()], dtype=torch.float64)

    def values(self) -> dict[str, float]:
        degrees, pixels = self.sums.tolist()
        return {"angle": degrees / pixels if pixels else math.nan}


def meter(task: str, outputs: int) -> Meter:
    """A fresh meter of a task."""
    if task == "saliency":
        return Saliency()
    return Normals() if task == "normals" else Classes(outputs)


def relative_improvement(found: Mapping[str, float], alone: Mapping[str, float]) -> float:
    """D in percent, of the measures in PRIMARY.

    Args:
        found: M_t by task.
        alone: S_t by task.

    Raises:
        ValueError: a task is missing, or S_t is not above 0.
    """
    if missing := [task for task in found if task not in alone]:
        raise ValueError(
            f"single_task has no value for {', '.join(missing)}; the relative improvement is over all tasks of a run."
        )
    if low := [task for task in found if not alone[task] > 0]:
        raise ValueError(f"single_task of {low[0]} is {alone[low[0]]}; it must be above 0.")
    parts = [(-1) ** PRIMARY[task][1] * (value - alone[task]) / alone[task] for task, value in found.items()]
    return 100 * sum(parts) / len(parts)
