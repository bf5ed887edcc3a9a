"""Losses of mask classification: each ground-truth mask is one query's to find, all others answer "no object".

    cost   = 2 (-p(class)) + 5 BCE + 5 dice        on random points that all masks of an image share
    match  = the assignment of least cost
    loss   = 2 CE(no object weighs 0.1) + 5 BCE + 5 dice        BCE and dice at points where masks are unsure

Matcher, point sampling and the three terms are transformers' (`Mask2FormerLoss`), whose formulas are those of
MaskFormer, Mask2Former and SAN. What is added here: the count of masks is averaged over processes under torch's own
process group, a batch without any mask is finite, and all of it is single precision.

Shapes: B images, Q queries, K classes, G masks of an image, h w and H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpeft.dense.san import Proposals


class MaskLoss(nn.Module):
    """Proposals and masks -> the weighted loss, and its terms by name for the log.

    Args:
        classes: K.
        no_object: Weight of "no object" in the cross-entropy; 0.1.
        class_weight: Of the cross-entropy and of the class in the matching; 2.
        mask_weight: The same of binary cross-entropy; 5.
        dice_weight: The same of dice; 5.
        points: Points a mask is compared at; 12544 = 112 * 112.
        oversample: Candidates a point; 3.
        importance: Share of the points that are taken where the mask is least sure; 0.75.
    """

    def __init__(
        self,
        classes: int,
        no_object: float = 0.1,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
    ) -> None:
        super().__init__()
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

        config = Mask2FormerConfig(
            id2label={index: str(index) for index in range(classes)},
            no_object_weight=no_object,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            train_num_points=points,
            oversample_ratio=oversample,
            importance_sample_ratio=importance,
        )
        self.weights = {"class": class_weight, "mask": mask_weight, "dice": dice_weight}
        self.criterion = Mask2FormerLoss(config, {})

    def forward(
        self, proposals: Sequence[Proposals], masks: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over all proposals, and the terms of each: the last one's `class mask dice`, `class_0 ...` before it.

        Args:
            proposals: Of every supervised block, the final one last.
            masks: Of each image, [G H W].
            labels: Their classes, [G].
        """
        device = proposals[-1].logits.device
        count = self._count(labels, device)
        terms: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):
            targets = [one.float() for one in masks]
            final = [("", proposals[-1])]
            for suffix, one in final + [(f"_{i}", one) for i, one in enumerate(proposals[:-1])]:
                terms.update(self._terms(one.masks.float(), one.logits.float(), targets, list(labels), count, suffix))
        total = torch.stack([self.weights[name.partition("_")[0]] * term for name, term in terms.items()]).sum()
        return total, terms

    def _terms(
        self, masks: Tensor, logits: Tensor, targets: list[Tensor], labels: list[Tensor], count: Tensor, suffix: str
    ) -> dict[str, Tensor]:
        match = self.criterion.matcher(masks, logits, targets, labels)
        unsure = self.criterion.loss_masks(masks, targets, match, count)  # pyright: ignore[reportArgumentType]
        named = self.criterion.loss_labels(logits, labels, match)  # pyright: ignore[reportArgumentType]
        return {
            f"class{suffix}": named["loss_cross_entropy"],
            f"mask{suffix}": unsure["loss_mask"],
            f"dice{suffix}": unsure["loss_dice"],
        }

    def _count(self, labels: Sequence[Tensor], device: torch.device) -> Tensor:
        """Masks a process, at least 1; Mask2FormerLoss's own counts only under accelerate."""
        count = torch.tensor(float(sum(len(one) for one in labels)), device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        return count.clamp(min=1)


def masks_of(mask: Tensor, ignore: int = 255) -> tuple[Tensor, Tensor]:
    """One mask for each class of a label map: int64 [H W] -> bool [G H W] and int64 [G]; G may be 0."""
    labels = mask.unique()
    labels = labels[labels != ignore]
    return mask[None] == labels[:, None, None], labels
