"""What is measured of several dense tasks, and how much better they are together than alone.

    D = 100 / T sum_t (-1)^(l_t) (M_t - S_t) / S_t      l_t = 1 where less is better, S_t of a model of t alone

Counts are summed over all images of an evaluation, and over processes, before anything is divided.

Shapes: B images, K classes or outputs, H W pixels, Q thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vpeft.metrics import everywhere

IGNORED = 255

# The measure that stands for a task, and whether less of it is better.
PRIMARY: dict[str, tuple[str, bool]] = {
    "semseg": ("miou", False),
    "human_parts": ("miou", False),
    "saliency": ("miou", False),
    "normals": ("angle", True),
}


class Measure(Protocol):
    """How well a task is done, from sums over images."""

    def count(self, output: Tensor, label: Tensor) -> Tensor:
        """What an output [K H W] adds to the sums."""
        ...

    def values(self, sums: Tensor) -> dict[str, float]:
        """Measures of sums."""
        ...

    def per_class(self, sums: Tensor) -> list[float]:
        """Intersection over union of each class in percent; empty where there are no classes."""
        ...


class Meter:
    """Sums of every image, kept apart until the end so that an image counts once over all processes."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._seen: dict[int, Tensor] = {}

    def update(self, output: Tensor, label: Tensor, index: Tensor) -> None:
        """Count outputs [B K H W] of the images of these indices [B] against labels."""
        for at, one, truth in zip(index.tolist(), output.detach(), label, strict=True):
            self._seen[at] = self.measure.count(one, truth).cpu()

    def total(self) -> Tensor:
        """The sums over all images of all processes, added in the order of the images.

        Raises:
            ValueError: there are no images.
        """
        seen = everywhere(self._seen)
        if not seen:
            raise ValueError(
                "There is nothing to measure: the evaluated split has no images. Evaluate data that has some."
            )
        return torch.stack([seen[at] for at in sorted(seen)]).sum(dim=0)

    def values(self, sums: Tensor) -> dict[str, float]:
        """Measures of what `total` gave."""
        return self.measure.values(sums)

    def per_class(self, sums: Tensor) -> list[float]:
        """Intersection over union of each class of what `total` gave; empty where there are no classes."""
        return self.measure.per_class(sums)


class Classes:
    """Mean intersection over union over all K classes, in percent; a class that is nowhere counts as 0.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def count(self, output: Tensor, label: Tensor) -> Tensor:
        """Pixels [K K], labelled in rows and predicted in columns."""
        valid = label != IGNORED
        pairs = label[valid] * self.classes + output.argmax(dim=0)[valid]
        return torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)

    def per_class(self, sums: Tensor) -> list[float]:
        sums = sums.double()
        hits = sums.diag()
        return (100 * hits / (sums.sum(0) + sums.sum(1) - hits).clamp(min=1)).tolist()

    def values(self, sums: Tensor) -> dict[str, float]:
        found = self.per_class(sums)
        return {"miou": sum(found) / len(found)}


class Saliency:
    """The largest, over 15 thresholds of probability, of the mean over images of the intersection over union, and of F.

    As in scale-lab/MTLoRA @ 333a375: F is of precision and recall that are each a mean over images, and beta is 1; an
    image without anything salient, in label and output, counts as 1. In percent.
    """

    def __init__(self) -> None:
        self.thresholds = torch.linspace(0.2, 0.9, 15)

    def count(self, output: Tensor, label: Tensor) -> Tensor:
        """IoU, precision, recall and 1, [4 Q]."""
        label = label.cpu().flatten()
        valid, truth = label != IGNORED, label == 1
        found = output.cpu().float().sigmoid().flatten() > self.thresholds[:, None]  # Q HW
        found = found & valid
        hits, either = (found & truth).sum(-1).double(), (found | truth).sum(-1)
        iou = torch.where(either > 0, hits / either.clamp(min=1), 1.0)
        precision = hits / found.sum(-1).clamp(min=1)
        recall = hits / truth.sum(-1).clamp(min=1)
        return torch.stack([iou, precision, recall, torch.ones_like(iou)])

    def values(self, sums: Tensor) -> dict[str, float]:
        iou, precision, recall, images = sums
        f = 2 * precision * recall / (images * (precision + recall)).clamp(min=1e-12)
        return {"miou": 100 * (iou / images).max().item(), "max_f": 100 * f.max().item()}

    def per_class(self, sums: Tensor) -> list[float]:
        return []


class Normals:
    """Mean angle between predicted and true vectors in degrees, where the true one is not 0."""

    def count(self, output: Tensor, label: Tensor) -> Tensor:
        """Degrees and pixels."""
        cosine = (F.normalize(output.float(), dim=0) * label).sum(0).clamp(-1, 1)
        valid = label.square().sum(0) > 0
        angles = torch.rad2deg(torch.acos(cosine))[valid]
        return torch.tensor([angles.cpu().double().sum().item(), valid.sum().item()], dtype=torch.float64)

    def values(self, sums: Tensor) -> dict[str, float]:
        degrees, pixels = sums.tolist()
        return {"angle": degrees / pixels if pixels else math.nan}

    def per_class(self, sums: Tensor) -> list[float]:
        return []


def meter(task: str, outputs: int) -> Meter:
    """A fresh meter of a task."""
    if task == "saliency":
        return Meter(Saliency())
    return Meter(Normals() if task == "normals" else Classes(outputs))


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
            f"single_task has no value for {', '.join(missing)}; the relative improvement is over all tasks of a run. "
            "Give what a model of each task alone reached."
        )
    if low := [task for task in found if not alone[task] > 0]:
        raise ValueError(f"single_task of {low[0]} is {alone[low[0]]}; it must be above 0.")
    parts = [(-1) ** PRIMARY[task][1] * (value - alone[task]) / alone[task] for task, value in found.items()]
    return 100 * sum(parts) / len(parts)
