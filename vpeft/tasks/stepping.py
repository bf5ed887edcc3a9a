"""What a run that counts in steps has in place of epochs: its checkpoints, and the lines it prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from vpeft.tasks.resuming import LastCheckpoint

NEVER = 2**62  # steps


class StepCheckpoint(LastCheckpoint):
    """Writes last.ckpt before every evaluation, every `every` steps, after the last one and its evaluation, and before
    leaving.

    An epoch may be one step or many thousand, so its end is no measure of what is lost.

    Args:
        path: The file.
        hint: What resumes the run, for the message.
        val_every: Steps between evaluations.
        every: Steps between two checkpoints.
    """

    def __init__(self, path: Path, hint: str, val_every: int, every: int = 1000) -> None:
        super().__init__(path, hint)
        self.val_every, self.every = val_every, every
        self._saved = -1  # the step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches and done < trainer.num_training_batches:
            return  # half a sum of gradients is in no checkpoint
        stopping, step = self._stopping(trainer), trainer.global_step
        if stopping or step % self.val_every == 0 or step % self.every == 0 or step >= trainer.max_steps:
            self._save(trainer)
            self._saved = step
        if stopping:
            self._leave(trainer, f"after step {step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: under max_steps Lightning goes on wrongly from a checkpoint of an epoch's end, and rightly from one
        of its last batch."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            self._save(trainer)  # with what was measured: from here on nothing measures it again

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._stopping(trainer) and self._saved == trainer.global_step:
            self._leave(trainer, f"in the evaluation after step {trainer.global_step}")


class StepEvaluations(L.Callback):
    """Evaluates on the validation samples every `every` optimiser steps.

    Lightning counts batches instead, of which an epoch's last ones may be fewer than are accumulated, and it leaves out
    an evaluation that was due when a run was stopped. The Trainer's `val_check_interval` is out of reach, so that it
    evaluates when it is told to.

    Args:
        every: Steps.
    """

    def __init__(self, every: int) -> None:
        self.every, self.done = every, 0

    def due(self, trainer: L.Trainer) -> bool:
        """Whether the present step is to be evaluated and has not been."""
        return trainer.global_step % self.every == 0 and trainer.global_step != self.done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.due(trainer):  # resumed
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.val_check_batch = 1 if self.due(trainer) else NEVER

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.done = trainer.global_step

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.done = state_dict["done"]


class StepLines(L.Callback):
    """A plain line at each of about twenty steps and after every evaluation, where no terminal can redraw a bar.

    Args:
        measures: What is said of an evaluation: its name, and the key and the format of the number.
    """

    def __init__(self, measures: Mapping[str, tuple[str, str]]) -> None:
        self.measures = dict(measures)
        self._started, self._said = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        if step == self._said or (step % max(1, steps // 20) and step != steps):
            return
        self._said = step  # several batches may make one step
        known = trainer.callback_metrics
        loss = [f"loss {float(known['train/loss']):.4f}"] if "train/loss" in known else []
        self._print(trainer, loss)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        known = trainer.callback_metrics
        self._print(trainer, [f"{name} {float(known[key]):{form}}" for name, (key, form) in self.measures.items()])

    def _print(self, trainer: L.Trainer, said: list[str]) -> None:
        if trainer.is_global_zero:
            parts = [f"step {trainer.global_step}/{trainer.max_steps}", *said]
            print("  ".join([*parts, f"{time.perf_counter() - self._started:.0f} s"]), flush=True)
