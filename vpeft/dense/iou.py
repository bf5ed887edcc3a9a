"""Intersection over union, counted in whole pixels.

    IoU_k = I_k / (P_k + L_k - I_k),    Acc_k = I_k / L_k,    aAcc = sum_k I_k / sum_k L_k
    mIoU, mAcc = their means over classes

I_k: pixels of class k that are predicted as k, P_k: predicted as k, L_k: labelled k. Ignored pixels are in none.

Shapes: B images, K classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vpeft.metrics import everywhere

Absent = Literal["zero", "ignore"]


@dataclass(frozen=True)
class Scores:
    """Measures of one evaluation, each within 0..1.

    Args:
        miou: Mean of `iou`.
        macc: Mean of `acc`.
        aacc: Share of all labelled pixels that are right.
        iou: Of each class; None for one that is left out of the mean.
        acc: Of each class; None for one without labelled pixels.
    """

    miou: float
    macc: float
    aacc: float
    iou: list[float | None]
    acc: list[float | None]


class Areas:
    """I, P and L of every image, kept apart until the end so that an image counts once over all processes.

    Args:
        classes: K.
        ignored: Value of a mask that is no class.
    """

    def __init__(self, classes: int, ignored: int = 255) -> None:
        self.classes, self.ignored = classes, ignored
        self._seen: dict[int, Tensor] = {}

    def reset(self) -> None:
        self._seen = {}

    def add(self, prediction: Tensor, mask: Tensor, index: Tensor) -> None:
        """Count predicted and labelled classes [B H W] of the images of these indices [B].

        Raises:
            ValueError: a class is not in 0..K-1, or prediction and mask differ in size.
        """
        if prediction.shape != mask.shape:
            raise ValueError(
                f"The prediction is {list(prediction.shape)} and the mask {list(mask.shape)}. Resize the logits to the "
                "mask before taking their argmax."
            )
        for predicted, labelled, at in zip(prediction, mask, index.tolist(), strict=True):
            self._seen[at] = self._count(predicted, labelled)

    def _count(self, predicted: Tensor, labelled: Tensor) -> Tensor:
        valid = labelled != self.ignored
        predicted, labelled = predicted[valid], labelled[valid]
        counts = [
            torch.bincount(one, minlength=self.classes)
            for one in (labelled[predicted == labelled], predicted, labelled)
        ]
        for what, found in zip(("prediction", "mask"), counts[1:], strict=True):
            if len(found) > self.classes:
                raise ValueError(
                    f"A {what} holds class {len(found) - 1}, and there are {self.classes}, counted from 0; "
                    f"{self.ignored} is ignored. Correct the masks, or build with as many classes as they have."
                )
        return torch.stack(counts).cpu()  # 3 K

    def total(self) -> Tensor:
        """I, P and L, int64 [3 K], of all images of all processes.

        Raises:
            ValueError: there are no images.
        """
        seen = everywhere(self._seen)
        if not seen:
            raise ValueError(
                "There is nothing to measure: the evaluated split has no images. Put some there, with masks."
            )
        return torch.stack(list(seen.values())).sum(dim=0)


def scores(areas: Tensor, absent: Absent = "zero") -> Scores:
    """Measure I, P and L, int64 [3 K].

    Args:
        areas: What `Areas.total` gives.
        absent: What a class counts that is labelled nowhere and predicted somewhere: `zero`, as mmsegmentation has it
            (nanmean over classes with a union), or `ignore`, as detectron2 does. The two differ on ADE20K-847 and
            PASCAL-Context-459. A class that is neither labelled nor predicted is left out by both.

    Raises:
        ValueError: no pixel is labelled.
    """
    hit, predicted, labelled = areas.double()
    if not labelled.sum():
        raise ValueError(
            "There is nothing to measure: every pixel of every mask is ignored. Compare the ids in the masks with the "
            "classes, and data.reduce_zero_label, which ignores id 0."
        )
    union = predicted + labelled - hit
    counted = union > 0 if absent == "zero" else labelled > 0
    iou, acc = hit / union, hit / labelled
    return Scores(
        miou=iou[counted].mean().item(),
        macc=acc[labelled > 0].mean().item(),
        aacc=(hit.sum() / labelled.sum()).item(),
        iou=[value if there else None for value, there in zip(iou.tolist(), counted.tolist(), strict=True)],
        acc=[value if there else None for value, there in zip(acc.tolist(), (labelled > 0).tolist(), strict=True)],
    )
