"""Weights other than the last ones: their running average, and those of the best epoch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor


class RunningAverage(L.Callback):
    """Exponential moving average of the trained parameters: a <- decay * a + (1 - decay) * p after every step.

    It stands in for the parameters whenever the model is evaluated. Lightning's own callback copies
    the whole module, frozen backbone included. Buffers are not averaged.

    Args:
        decay: Weight of the past, in (0, 1); SSF uses 0.9998.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: list[Tensor] | None = None
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trained = _trained(pl_module)
        start = [parameter.detach().clone() for parameter in trained]
        if self.average is not None:  # resumed
            start = [kept.to(value.device) for kept, value in zip(self.average, start, strict=True)]
        self.average = start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:  # else gradients are still being summed
            self._step = trainer.global_step
            for average, parameter in zip(self.average or [], _trained(pl_module), strict=True):
                average.lerp_(parameter.detach(), 1 - self.decay)

    def swap(self, pl_module: L.LightningModule) -> None:
        """Exchange the parameters and their average."""
        assert self.average is not None, "there is no average before training has begun"
        for parameter, average in zip(_trained(pl_module), self.average, strict=True):
            value = parameter.detach().clone()
            parameter.data.copy_(average)
            average.copy_(value)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self._step = state_dict["average"], state_dict["step"]


def _trained(pl_module: L.LightningModule) -> list[torch.nn.Parameter]:
    return [parameter for parameter in pl_module.parameters() if parameter.requires_grad]


class BestOnVal(L.Callback):
    """Keeps what was trained in the epoch with the highest accuracy (or mIoU) on val; the first of equals.

    Stands before RunningAverage in the list of callbacks, so that it copies what was evaluated.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.epoch: int | None = None
        self.delta: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        task: Any = pl_module
        score = task.evaluation.score
        if self.score is None or score > self.score:
            self.score, self.epoch = score, trainer.current_epoch + 1
            self.delta = {name: value.detach().to("cpu", copy=True) for name, value in task.tuned.delta().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "delta": self.delta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch, self.delta = state_dict["score"], state_dict["epoch"], state_dict["delta"]
