"""What a run shows while it goes and at its end: TensorBoard's pictures, and the terminal."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from vpeft.tasks.classification import Classification
from vpeft.tasks.figures import confusion_figure, prediction_grid

LINE = {
    "train/loss_epoch": "loss {:.4f}",
    "train/accuracy": "train {:.1%}",
    "val/accuracy": "val {:.1%}",
    "val/miou": "val mIoU {:.1%}",
    "val/score": "val score {:.1%}",
    "speed/images_per_second": "{:.0f} images/s",
}


class ClassifiedPictures:
    """A grid of test images with predictions, and the confusion matrix."""

    def keep(self, batch: Any, outputs: Any, row: int) -> tuple[Tensor, Tensor, Tensor]:
        return batch["image"][row].cpu(), batch["label"][row].cpu(), outputs[row]

    def show(self, task: Classification, kept: list[list[Any]], board: Any, step: int) -> None:
        assert task.evaluation is not None
        images, labels, logits = (torch.stack(parts) for parts in zip(*kept[0], strict=True))
        measured = task.evaluation
        title = f"test: {measured.accuracy:.1%} of {measured.images} images right"
        board.add_figure("test/predictions", prediction_grid(images, labels, logits, task.classes), step)
        board.add_figure("test/confusion", confusion_figure(measured.confusion, task.classes, title), step)


class Bar(RichProgressBar):
    """Lightning's bar, with the measures that fit beside it."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands to the right of the bar."""
        return dict(text.rsplit(" ", 1) for text in _measures(trainer) if not text.endswith("/s"))


class EpochLines(L.Callback):
    """One plain line for each of about twenty epochs, where no terminal can redraw a bar.

    Args:
        label: Stands before each, where several runs print.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._started = time.perf_counter()
        self._evaluated = -1  # the epoch

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if not trainer.is_global_zero or (epoch % max(1, epochs // 20) and epoch != epochs):
            return
        parts = [self.label] * bool(self.label) + [f"epoch {epoch}/{epochs}"]
        stale = trainer.current_epoch != self._evaluated  # Lightning keeps the measures of an earlier epoch
        parts += [text for text in _measures(trainer) if not (stale and text.startswith("val "))]
        parts.append(f"{time.perf_counter() - self._started:.0f} s")
        print("  ".join(parts), flush=True)


def _measures(trainer: L.Trainer) -> list[str]:
    known = trainer.callback_metrics
    return [text.format(float(known[name])) for name, text in LINE.items() if name in known]
