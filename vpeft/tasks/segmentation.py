"""Semantic segmentation with a frozen backbone, methods, a neck and a decode head.

Shapes: B images, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor

from vpeft.config import OptimConfig, TrainConfig
from vpeft.dense.heads import Pooling
from vpeft.dense.inference import augmented, slide, whole
from vpeft.dense.iou import Absent, Areas, Scores, scores
from vpeft.dense.losses import cross_entropy
from vpeft.dense.segmentation_schema import InferenceConfig
from vpeft.metrics import everywhere
from vpeft.tasks import learning
from vpeft.tuned import Tuned


@dataclass(frozen=True)
class Segmented:
    """Measures of one evaluation.

    Args:
        loss: Mean over images of the cross-entropy of their labelled pixels.
        areas: Pixels that are right, predicted and labelled of each class, [3 K].
        images: How many there were.
        absent: What a class counts that only the prediction has (`vpeft.dense.iou.scores`).
    """

    metric: ClassVar[str] = "miou"

    loss: float
    areas: Tensor
    images: int
    absent: Absent

    @cached_property
    def scores(self) -> Scores:
        return scores(self.areas, self.absent)

    @property
    def score(self) -> float:
        """What an epoch is chosen by."""
        return self.scores.miou

    @property
    def per_class(self) -> list[float | None]:
        """IoU of each class."""
        return self.scores.iou

    def measures(self) -> dict[str, Any]:
        """For a result row."""
        found = {"miou": self.scores.miou, "macc": self.scores.macc, "aacc": self.scores.aacc, "absent": self.absent}
        return found | {"loss": self.loss if math.isfinite(self.loss) else None, "images": self.images}


class Segmentation(L.LightningModule):
    """Batches are {image: uint8 [B 3 H W], mask: int64 [B H W], index: [B]}; masks of a test keep their own size.

    `evaluation` holds what the last validation or test measured. A Lightning checkpoint of this module holds only
    what is trained.

    Args:
        tuned: Backbone, methods, neck and `Decoders`.
        classes: Their names.
        optim: Optimiser and schedule.
        train: Length of the run.
        inference: From crops to whole images.
        mean: Channel means, on the scale 0..1.
        std: Channel standard deviations.
        absent: Definition of the mIoU.
        ignored: Value of a mask that is no class.

    Raises:
        ValueError: the stride of the inference leaves gaps between windows; in `on_fit_start`, an image that will be
            evaluated is too large for inference in one pass, or a batch too small for the head's BatchNorm.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tuned: Tuned,
        classes: Sequence[str],
        optim: OptimConfig,
        train: TrainConfig,
        inference: InferenceConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        absent: Absent = "zero",
        ignored: int = 255,
    ) -> None:
        super().__init__()
        self.tuned, self.classes, self.optim = tuned, list(classes), optim
        self.epochs, self.ignored = train.epochs, ignored
        self.absent: Absent = absent
        self.infer_with(inference)
        self.normalization = (tuple(mean), tuple(std))
        self.register_buffer("mean", learning.channels(mean), persistent=False)
        self.register_buffer("std", learning.channels(std), persistent=False)
        self.evaluation: Segmented | None = None
        self._areas = Areas(len(classes), ignored)
        self._losses: dict[int, float] = {}
        self.strict_loading = False  # the frozen backbone is not in a checkpoint; on_load_checkpoint is strict

    def infer_with(self, inference: InferenceConfig) -> None:
        """Go from crops to whole images this way from now on.

        Raises:
            ValueError: the stride leaves gaps between windows.
        """
        crop = self.tuned.backbone.image_size
        if inference.mode == "slide" and inference.stride is not None and inference.stride > min(crop):
            raise ValueError(
                f"inference.stride is {inference.stride}, and windows are {crop[0]}x{crop[1]} pixels, so that some of "
                f"an image would be in none; give at most {min(crop)}."
            )
        self.inference = inference

    def forward(self, images: Tensor, size: tuple[int, int], inference: InferenceConfig | None = None) -> Tensor:
        """Probabilities [B K *size] of uint8 images [B 3 H W] of any size; `inference` is the run's own by default."""
        inference = inference or self.inference
        crop = self.tuned.backbone.image_size
        if inference.mode == "whole":
            predict = partial(whole, self.tuned, size=crop)
        else:
            stride = inference.stride
            steps = (stride, stride) if stride else (2 * crop[0] // 3, 2 * crop[1] // 3)
            predict = partial(slide, self.tuned, crop=crop, stride=steps)
        normalised = learning.normalise(images, self.mean, self.std)
        return augmented(predict, normalised, size, inference.scales, inference.flip)

    def on_fit_start(self) -> None:
        """Refuse before training what would fail within it."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self._check_batches(data)
        if self.inference.mode == "whole":
            self._check_sizes(data)

    def _check_batches(self, data: Any) -> None:
        share, size = -(-len(data.files("train")) // self.trainer.world_size), data.config.batch_size
        smallest = size if data.config.drop_last or share % size == 0 else share % size
        pooling = isinstance(self.tuned.head, Pooling) and self.tuned.head.pools_to_a_cell
        synchronised = any(isinstance(module, torch.nn.SyncBatchNorm) for module in self.tuned.modules())
        if smallest == 1 and pooling and not synchronised:
            raise ValueError(
                f"The head pools a map to one cell, which of one image has no variance, and of {share} images in "
                f"batches of {size} the last has one; give another data.batch_size, or data.drop_last true."
            )

    def _check_sizes(self, data: Any) -> None:
        crop = self.tuned.backbone.image_size
        for part in ("val", "test"):
            for file, sides in zip(data.files(part), data.evaluated_sizes(part), strict=True):
                height, width = (int(side * max(self.inference.scales) + 0.5) for side in sides)
                if height > crop[0] or width > crop[1]:
                    raise ValueError(
                        f"{file} is {height}x{width} pixels when it is evaluated, and inference.mode whole takes up to "
                        f"{crop[0]}x{crop[1]}; give --inference.mode slide."
                    )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        count = len(batch["index"])
        losses = self.tuned(learning.normalise(batch["image"], self.mean, self.std), batch["mask"])
        loss = torch.stack(list(losses.values())).sum() + learning.penalty(self.tuned)
        parts = {f"train/loss_{name}": part for name, part in losses.items()}
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=count)
        learning.log_step(self, {"train/loss": loss, **parts}, count)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        learning.after_backward(self.trainer, self.tuned)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        learning.after_step(self.trainer, self.tuned, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        learning.evaluate_the_last_epoch(self.trainer)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._note(batch)

    test_step = validation_step

    def _note(self, batch: dict[str, Tensor]) -> Tensor:
        """Count a batch; returns the predicted classes [B H W]."""
        mask = batch["mask"]
        shares = self(batch["image"], (mask.shape[-2], mask.shape[-1]))
        predicted = shares.argmax(dim=1)
        self._areas.add(predicted, mask, batch["index"])
        logs = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
        for at, log, labels in zip(batch["index"].tolist(), logs, mask, strict=True):
            self._losses[at] = float(cross_entropy(log[None], labels[None], True, self.ignored))
        return predicted.cpu()

    def on_validation_epoch_start(self) -> None:
        learning.share_statistics(self.trainer, self.tuned)
        self._areas.reset()
        self._losses = {}

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        losses = everywhere(self._losses)
        loss = math.fsum(losses[at] for at in sorted(losses)) / max(1, len(losses))
        self.evaluation = result = Segmented(loss, self._areas.total(), len(losses), self.absent)
        found = {"loss": loss, "miou": result.scores.miou, "macc": result.scores.macc, "aacc": result.scores.aacc}
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})

    def configure_optimizers(self) -> Any:
        return learning.optimisation(self.trainer, self.tuned, self.optim, self.epochs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.keep_trained(checkpoint, self.tuned)
        last = self.evaluation
        checkpoint["evaluation"] = last and {"loss": last.loss, "areas": last.areas, "images": last.images}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.check_trained(checkpoint, self.tuned)
        last = checkpoint["evaluation"]
        self.evaluation = Segmented(**last, absent=self.absent) if last else None
