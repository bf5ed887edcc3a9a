"""What is measured on a set of logits.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15  # Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599


@dataclass(frozen=True)
class Evaluation:
    """Measures of one evaluation.

    Args:
        loss: Mean cross-entropy, without label smoothing.
        accuracy: Share of images whose largest logit is at their label (top-1).
        per_class: The same within each class; None for a class without images.
        ece: Expected calibration error of the softmax, 15 equal bins.
        confusion: Counts [K, K], rows are labels and columns predictions.
    """

    metric: ClassVar[str] = "accuracy"

    loss: float
    accuracy: float
    per_class: list[float | None]
    ece: float
    confusion: Tensor

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def score(self) -> float:
        """What an epoch is chosen by."""
        return self.accuracy

    def measures(self) -> dict[str, Any]:
        """For a result row."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"accuracy": self.accuracy, "ece": self.ece, "loss": loss, "images": self.images}


def everywhere(seen: dict[int, Any]) -> dict[int, Any]:
    """What all processes have seen, by image."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seen
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, seen)
    return {at: one for part in parts for at, one in part.items()}


def evaluate(logits: Tensor, labels: Tensor) -> Evaluation:
    """Measure logits [N, K] against labels [N], on the CPU and in single precision.

    Raises:
        ValueError: There are no images.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = logits.float().cpu(), labels.cpu()
    if not len(labels):
        raise ValueError("There is nothing to measure: the evaluated split has no images. Evaluate data that has some.")
    count, classes = logits.shape
    # torchmetrics counts through an [N, K * K] table when deterministic algorithms are on: 30 GB for 397 classes.
    pairs = torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes * classes)
    confusion = pairs.view(classes, classes)
    hits, totals = confusion.diag().tolist(), confusion.sum(dim=1).tolist()
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=sum(hits) / count,
        per_class=[hit / total if total else None for hit, total in zip(hits, totals, strict=True)],
        ece=multiclass_calibration_error(logits.softmax(dim=1), labels, classes, n_bins=CALIBRATION_BINS).item(),
        confusion=confusion,
    )
