"""What makes a run that was stopped end as if it had not been."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vpeft.tasks import checkpoint_file
from vpeft.tasks.optimisation import learning_rates

ADVICE = "Try a lower optim.lr, a longer optim.warmup_epochs, --train.clip 1.0, or --train.precision 32-true."


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes and reads as `vpeft.tasks.checkpoint_file` does; that is asked before whether a file is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checkpoint_file.write(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return checkpoint_file.load(Path(path), mmap=False)  # of the optimiser it becomes the state itself


class Interrupted(SystemExit):
    """A run stopped by a signal that can be resumed; its code is 128 + the signal's number, as in a shell."""


class StepSeeds(L.Callback):
    """Seeds torch before every batch from (seed, process, batch), so no generator's state need be kept.

    Dropout then depends neither on what evaluation or a data loader drew before, nor on where a run
    was resumed.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seed(0, trainer.current_epoch)  # for what a method prepares: the same in every process

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._seed(trainer.global_rank, trainer.current_epoch, batch_idx)

    def _seed(self, *place: int) -> None:
        drawn = np.random.SeedSequence((self.seed, *place)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(drawn >> np.uint64(1)))


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after every epoch, and before leaving on Ctrl-C, SIGTERM or SIGUSR1.

    A signal is answered after the present optimiser step. A second Ctrl-C ends the process at once; the others come
    twice from Slurm, which sends them to a process and to the one that hands them on.

    Args:
        path: The file.
        hint: What resumes the run, for the message.
    """

    def __init__(self, path: Path, hint: str) -> None:
        self.path, self.hint = path, hint
        self._received: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here and not earlier: Lightning installs its own handlers just before, and removes all at the end.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._receive)

    on_test_start = on_train_start

    def stop(self, number: int) -> None:
        """Leave as if this process had received a signal; for a run whose thread receives none."""
        self._received = number

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = self._received or number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        # Half a sum of gradients is in no checkpoint, and the end of an epoch has its own.
        if done % trainer.accumulate_grad_batches or done >= trainer.num_training_batches:
            return
        if self._stopping(trainer):
            self._save(trainer)
            self._leave(trainer, f"after batch {done} of epoch {trainer.current_epoch + 1}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if self._stopping(trainer):
            self._leave(trainer, f"after epoch {trainer.current_epoch + 1}")

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._stopping(trainer):
            self._leave(trainer, "in the test, after the last epoch")

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)

    def _stopping(self, trainer: L.Trainer) -> bool:
        received = self._received is not None
        # The processes need one answer, or some would wait for the others for ever.
        return received if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(received, all=False)

    def _leave(self, trainer: L.Trainer, where: str) -> None:
        number = signal.Signals(self._received or signal.SIGTERM)
        if not trainer.is_global_zero:
            # Lightning kills the first process, which is still leaving, when another one fails.
            raise Interrupted(0)
        print(f"Stopped by {number.name} {where}. All is in {self.path}; {self.hint}", file=sys.stderr, flush=True)
        raise Interrupted(128 + number)


class Finite(L.Callback):
    """Ends a run whose loss or trained weights are not numbers, and lets neither into a checkpoint or a test.

    The first bad step is found on the device. The CPU reads it after every batch where that costs
    nothing, on a GPU every `every` batches and before every checkpoint. A finite loss can have a
    gradient that is not, so the weights are looked at before every checkpoint and before the test.

    Args:
        every: Batches between two looks on a GPU.
        model: Attribute of the LightningModule whose `delta()` is what is trained.
        advice: What to try, for the message.
    """

    def __init__(self, every: int = 50, model: str = "tuned", advice: str = ADVICE) -> None:
        self.every, self.model, self.advice = every, model, advice
        self._bad: torch.Tensor | None = None  # first optimiser step with a bad loss in this process, or infinity

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        bad = torch.where(torch.isfinite(loss), torch.inf, float(trainer.global_step))
        self._bad = bad if self._bad is None else torch.minimum(self._bad, bad)
        if loss.device.type == "cpu" or (batch_idx + 1) % self.every == 0:
            self._look_at_loss(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look_at_loss(trainer)
        self._look_at_weights(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_at_weights(trainer, pl_module)

    def _look_at_loss(self, trainer: L.Trainer) -> None:
        if self._bad is None:
            return
        # The step of the process that met it first: the others have a finite loss and end with it.
        step = float(trainer.strategy.reduce(self._bad, reduce_op="min"))
        if step != torch.inf:
            raise _diverged(trainer, f"The loss is not a finite number in optimiser step {int(step)}", self.advice)

    def _look_at_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model: Any = getattr(pl_module, self.model)
        bad = [name for name, value in model.delta().items() if not torch.isfinite(value).all()]
        # Each process has its own statistics of a BatchNorm, and under FSDP its own share of the weights.
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            where = f" ({', '.join(bad[:3])})" if bad else ""
            what = f"Trained weights{where} are not finite numbers after step {trainer.global_step}"
            raise _diverged(trainer, what, self.advice)


def _diverged(trainer: L.Trainer, what: str, advice: str) -> FloatingPointError:
    rates = " and ".join(f"{lr:.3g} ({name})" for name, lr in learning_rates(trainer.optimizers[0]).items())
    epoch = trainer.current_epoch + 1
    if trainer.max_epochs and trainer.max_epochs > 0:  # -1 where steps are counted
        epoch = min(epoch, trainer.max_epochs)
    return FloatingPointError(
        f"{what} of {trainer.estimated_stepping_batches} (epoch {epoch}), at a learning rate of {rates}. {advice}"
    )
