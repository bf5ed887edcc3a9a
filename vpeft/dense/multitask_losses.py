"""The losses of several dense tasks, with the weights of the public multi-task codes.

Shapes: B images, K outputs, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255

# scale-lab/MTLoRA @ 333a375, which has them from ASTMT (Maninis et al., CVPR 2019, arXiv:1904.08918).
WEIGHTS: dict[str, float] = {"semseg": 1.0, "human_parts": 2.0, "saliency": 5.0, "normals": 10.0}


def classes(output: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy, the mean over pixels that are not ignored; 0 where all are."""
    total = F.cross_entropy(output, label, ignore_index=IGNORED, reduction="sum")
    return total / (label != IGNORED).sum().clamp(min=1)


def saliency(output: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy; over a batch, what is salient weighs as the share of what is not, and vice versa."""
    valid, truth = (label != IGNORED).float(), (label == 1).float()
    count = valid.sum().clamp(min=1)
    negative = (valid - truth).sum() / count
    loss = F.binary_cross_entropy_with_logits(output[:, 0], truth, reduction="none") * valid
    return (negative * loss * truth + (1 - negative) * loss * (1 - truth)).sum() / count


def normals(output: Tensor, label: Tensor) -> Tensor:
    """Mean absolute difference of the output, at length 1, from the true vectors, where those are not 0."""
    valid = (label.square().sum(1, keepdim=True) > 0).expand_as(label)
    return ((F.normalize(output, dim=1) - label).abs() * valid).sum() / valid.sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "semseg": classes,
    "human_parts": classes,
    "saliency": saliency,
    "normals": normals,
}


def total(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum."""
    return torch.stack([weights[task] * loss for task, loss in losses.items()]).sum()
