"""Several dense tasks on one tuned backbone.

Shapes: B images, K outputs of a task, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from vpeft.dense.multitask import MultiTask
from vpeft.dense.multitask_losses import LOSSES, WEIGHTS, total
from vpeft.dense.multitask_metrics import PRIMARY, Meter, meter, relative_improvement
from vpeft.methods import Penalised, Stepping
from vpeft.schema import OptimConfig, TrainConfig
from vpeft.tasks.optimisation import learning_rates, optimizer, parameter_groups, schedule


class MultiTaskModule(L.LightningModule):
    """Weighted losses of all tasks; batches are {image: uint8 [B, 3, H, W], index: [B], and labels by task}.

    `evaluation` holds what the last validation or test measured: by task, and the relative improvement under
    `relative_improvement` where `single_task` names every task. A checkpoint holds only what is trained. With several
    processes, images that fill up the share of one count once more.

    Args:
        model: Backbone, methods and heads.
        optim: Optimiser and schedule.
        train: Length of the run.
        mean: Channel means, on the scale 0..1.
        std: Channel standard deviations.
        weights: Of the losses; tasks that are not named have the published ones.
        single_task: What a model of each task alone reached.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: MultiTask,
        optim: OptimConfig,
        train: TrainConfig,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Mapping[str, float] = {},
        single_task: Mapping[str, float] = {},
    ) -> None:
        super().__init__()
        self.model, self.optim, self.epochs = model, optim, train.epochs
        self.weights = {task: weights.get(task, WEIGHTS[task]) for task in model.tasks}
        self.single_task = dict(single_task)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.meters: dict[str, Meter] = {}
        self.evaluation: dict[str, dict[str, float]] = {}
        self.strict_loading = False  # the frozen backbone is not in a checkpoint; on_load_checkpoint is strict

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs [B, K, H, W] by task, of uint8 images [B, 3, H, W]."""
        return self.model((images.float() / 255 - self.mean) / self.std)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        outputs = self(batch["image"])
        losses = {task: LOSSES[task](output.float(), batch[task]) for task, output in outputs.items()}
        loss = total(losses, self.weights)
        for method in self.model.tuned.methods:
            if isinstance(method, Penalised):
                loss = loss + method.penalty()
        count = len(batch["image"])
        self.log("train/loss", loss, batch_size=count)
        means = {"train/loss_epoch": loss, **{f"train/loss/{task}": value for task, value in losses.items()}}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=count)
        rates = learning_rates(self.trainer.optimizers[0])
        self.log_dict({f"lr/{name}": rate for name, rate in rates.items()}, batch_size=count)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for method in self.model.tuned.methods:
            if isinstance(method, Stepping):
                method.after_backward(self.trainer.global_step, int(self.trainer.estimated_stepping_batches))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        for method in self.model.tuned.methods:
            if isinstance(method, Stepping):
                method.after_step(step, int(self.trainer.estimated_stepping_batches))

    def on_validation_epoch_start(self) -> None:
        self.meters = {task: meter(task, count) for task, count in self.model.tasks.items()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = self(batch["image"])
        for task, output in outputs.items():
            self.meters[task].update(output, batch[task])
        return outputs

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        for counted in self.meters.values():
            summed = self.trainer.strategy.reduce(counted.sums.to(self.device), reduce_op="sum")
            counted.sums = torch.as_tensor(summed).cpu()
        self.evaluation = {task: counted.values() for task, counted in self.meters.items()}
        main = {task: values[PRIMARY[task][0]] for task, values in self.evaluation.items()}
        if all(task in self.single_task for task in main):
            gain = relative_improvement(main, self.single_task)
            self.evaluation["relative_improvement"] = {"percent": gain}
        flat = {f"{name}/{key}": value for name, values in self.evaluation.items() for key, value in values.items()}
        self.log_dict({f"{split}/{name}": value for name, value in flat.items()})

    def configure_optimizers(self) -> Any:
        built = optimizer(parameter_groups(self.model.tuned.parameter_groups(), self.optim), self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps / self.epochs * self.optim.warmup_epochs)
        factor = torch.optim.lr_scheduler.LambdaLR(built, lambda step: schedule(step, steps, warmup, self.optim.min_lr))
        return {"optimizer": built, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self._delta_keys()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name in kept}
        checkpoint["evaluation"] = self.evaluation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored, kept = set(checkpoint["state_dict"]), self._delta_keys()
        if stored != kept:
            raise ValueError(
                f"The checkpoint does not fit this model: it lacks {sorted(kept - stored)[:3] or 'nothing'} and has "
                f"{sorted(stored - kept)[:3] or 'nothing'} too many. Resume with the config saved beside it."
            )
        self.evaluation = checkpoint["evaluation"]

    def _delta_keys(self) -> set[str]:
        return {f"model.tuned.{name}" for name in self.model.tuned.delta()}
