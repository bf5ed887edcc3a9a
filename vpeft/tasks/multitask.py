"""Several dense tasks on one tuned backbone.

Shapes: B images, K outputs of a task, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor

from vpeft.dense.multitask_losses import LOSSES, WEIGHTS, total
from vpeft.dense.multitask_metrics import PRIMARY, Meter, meter, relative_improvement
from vpeft.metrics import everywhere
from vpeft.schema import OptimConfig, TrainConfig
from vpeft.tasks import learning
from vpeft.tuned import Tuned


@dataclass(frozen=True)
class MultiTasked:
    """Measures of one evaluation.

    Args:
        loss: Mean over images of the weighted sum of the tasks' losses.
        tasks: By task: miou and max_f in percent, angle in degrees; NaN where nothing is labelled.
        per_class_percent: Intersection over union of the classes of all tasks that have classes.
        images: How many there were.
        gain: Relative improvement over models of one task each, in percent, where those are known.
    """

    metric: ClassVar[str] = "score"

    loss: float
    tasks: dict[str, dict[str, float]]
    per_class_percent: list[float]
    images: int
    gain: float | None

    @property
    def score(self) -> float:
        """Mean over tasks of the main measure: mIoU, and of normals 1 - angle / 180, since less of it is better."""
        main = {task: values[PRIMARY[task][0]] for task, values in self.tasks.items()}
        parts = [1 - value / 180 if PRIMARY[task][1] else value / 100 for task, value in main.items()]
        there = [part for part in parts if math.isfinite(part)]
        return math.fsum(there) / max(1, len(there))

    @property
    def per_class(self) -> list[float | None]:
        """IoU of each class of each task that has classes."""
        return [value / 100 for value in self.per_class_percent]

    def measures(self) -> dict[str, Any]:
        """For a result row: shares within 0..1, angles in degrees."""
        tasks = {
            task: {name: _plain(value if name == "angle" else value / 100) for name, value in values.items()}
            for task, values in self.tasks.items()
        }
        gain = None if self.gain is None else self.gain / 100
        found = {"score": self.score, "relative_improvement": gain, "tasks": tasks}
        return found | {"loss": _plain(self.loss), "images": self.images}


class MultiTaskModule(L.LightningModule):
    """Weighted losses of all tasks; batches are {image: uint8 [B, 3, H, W], index: [B], and labels by task}.

    `evaluation` holds what the last validation or test measured. A checkpoint holds only what is trained.

    Args:
        tuned: Backbone, methods and heads (`vpeft.dense.multitask.multitask`).
        tasks: Outputs K of each.
        classes: Names of the classes of the tasks that have some.
        optim: Optimiser and schedule.
        train: Length of the run.
        mean: Channel means, on the scale 0..1.
        std: Channel standard deviations.
        weights: Of the losses; tasks that are not named have the published ones.
        single_task: What a model of each task alone reached; without one of all tasks there is no relative improvement.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tuned: Tuned,
        tasks: Mapping[str, int],
        classes: Mapping[str, Sequence[str]],
        optim: OptimConfig,
        train: TrainConfig,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Mapping[str, float] = {},
        single_task: Mapping[str, float] = {},
    ) -> None:
        super().__init__()
        self.tuned, self.tasks, self.optim, self.epochs = tuned, dict(tasks), optim, train.epochs
        self.names = {task: list(classes[task]) for task in tasks if task in classes}
        self.classes = [f"{task}/{name}" for task, names in self.names.items() for name in names]
        self.weights = {task: weights.get(task, WEIGHTS[task]) for task in tasks}
        self.single_task = dict(single_task)
        self.normalization = (tuple(mean), tuple(std))
        self.register_buffer("mean", learning.channels(tuple(mean)), persistent=False)
        self.register_buffer("std", learning.channels(tuple(std)), persistent=False)
        self.evaluation: MultiTasked | None = None
        self._meters: dict[str, Meter] = {}
        self._losses: dict[int, float] = {}
        self.strict_loading = False  # the frozen backbone is not in a checkpoint; on_load_checkpoint is strict

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs [B, K, H, W] by task, of uint8 images [B, 3, H, W]."""
        return self.tuned(learning.normalise(images, self.mean, self.std))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = _losses(self(batch["image"]), batch)
        loss = total(losses, self.weights) + learning.penalty(self.tuned)
        count = len(batch["index"])
        means = {"train/loss_epoch": loss, **{f"train/loss/{task}": value for task, value in losses.items()}}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=count)
        learning.log_step(self, {"train/loss": loss}, count)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        learning.after_backward(self.trainer, self.tuned)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        learning.after_step(self.trainer, self.tuned, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        learning.evaluate_the_last_epoch(self.trainer)

    def on_validation_epoch_start(self) -> None:
        self._meters = {task: meter(task, count) for task, count in self.tasks.items()}
        self._losses = {}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; returns the outputs [B K H W] by task."""
        outputs = {task: output.float() for task, output in self(batch["image"]).items()}
        for task, output in outputs.items():
            self._meters[task].update(output, batch[task], batch["index"])
        for row, at in enumerate(batch["index"].tolist()):
            one = {task: label[row : row + 1] for task, label in batch.items()}
            losses = _losses({task: output[row : row + 1] for task, output in outputs.items()}, one)
            self._losses[at] = float(total(losses, self.weights))
        return outputs

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        sums = {task: counted.total() for task, counted in self._meters.items()}
        values = {task: self._meters[task].values(counted) for task, counted in sums.items()}
        shares = [share for task, counted in sums.items() for share in self._meters[task].per_class(counted)]
        losses = everywhere(self._losses)
        loss = math.fsum(losses[at] for at in sorted(losses)) / max(1, len(losses))
        main = {task: found[PRIMARY[task][0]] for task, found in values.items()}
        known = all(task in self.single_task for task in main) and all(map(math.isfinite, main.values()))
        gain = relative_improvement(main, self.single_task) if known else None
        self.evaluation = result = MultiTasked(loss, values, shares, len(losses), gain)
        found = result.measures()
        flat = {f"{task}/{name}": value for task, one in found["tasks"].items() for name, value in one.items()}
        flat |= {name: found[name] for name in ("loss", "score", "relative_improvement")}
        self.log_dict({f"{split}/{name}": value for name, value in flat.items() if value is not None})

    def configure_optimizers(self) -> Any:
        return learning.optimisation(self.trainer, self.tuned, self.optim, self.epochs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.keep_trained(checkpoint, self.tuned)
        checkpoint["evaluation"] = self.evaluation and asdict(self.evaluation)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.check_trained(checkpoint, self.tuned)
        last = checkpoint["evaluation"]
        self.evaluation = MultiTasked(**last) if last else None


def _losses(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {task: LOSSES[task](output.float(), batch[task]) for task, output in outputs.items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
