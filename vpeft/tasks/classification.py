"""Image classification with a frozen backbone, a method and a head.

Shapes: B images, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from vpeft.config import OptimConfig, TrainConfig
from vpeft.job import Elsewhere
from vpeft.methods import Preparing
from vpeft.metrics import Evaluation, evaluate
from vpeft.tasks import learning
from vpeft.tasks.feature_cache import FeatureCache
from vpeft.tuned import Tuned


class Classification(L.LightningModule):
    """Cross-entropy on a Tuned backbone; batches are {image: uint8 [B, 3, H, W], label, index: [B]}.

    `evaluation` holds what the last validation or test measured; `cache`, where it is set, what the backbone makes of
    images, which is then computed once; `elsewhere`, where it is set, computes the features beside those of other runs.
    A Lightning checkpoint of this module holds only what is trained.

    Args:
        tuned: Backbone, methods and head.
        classes: Their names.
        optim: Optimiser and schedule.
        train: Label smoothing and the length of the run.
        mean: Channel means, on the scale 0..1.
        std: Channel standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tuned: Tuned,
        classes: Sequence[str],
        optim: OptimConfig,
        train: TrainConfig,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.tuned, self.classes, self.optim = tuned, list(classes), optim
        self.smoothing, self.epochs = train.label_smoothing, train.epochs
        self.normalization = (tuple(mean), tuple(std))
        self.register_buffer("mean", learning.channels(tuple(mean)), persistent=False)
        self.register_buffer("std", learning.channels(tuple(std)), persistent=False)
        self.cache: FeatureCache | None = None
        self.elsewhere: Elsewhere | None = None
        self.evaluation: Evaluation | None = None
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.strict_loading = False  # the frozen backbone is not in a checkpoint; on_load_checkpoint is strict

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, 3, H, W], normalised where the model is."""
        seen = self.normalised(images)
        return self.tuned(seen) if self.elsewhere is None else self.tuned.head(self.elsewhere.features(seen))

    def normalised(self, images: Tensor) -> Tensor:
        """What the model sees of uint8 images."""
        return learning.normalise(images, self.mean, self.std)

    def logits(self, batch: dict[str, Tensor], split: str) -> Tensor:
        """Logits [B, K] of a batch, through the cache where its split is kept."""
        if self.cache is None or split not in self.cache.counts:
            return self(batch["image"])
        return self.cache.logits(split, batch["index"], lambda new: self.normalised(batch["image"][new]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch["label"]
        logits = self.logits(batch, "train")
        loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing) + learning.penalty(self.tuned)
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        means = {"train/loss_epoch": loss, "train/accuracy": right}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=len(labels))
        learning.log_step(self, {"train/loss": loss}, len(labels))
        return loss

    def on_train_epoch_start(self) -> None:
        preparing = [part for part in (*self.tuned.methods, self.tuned.head) if isinstance(part, Preparing)]
        if not preparing:
            return
        self.eval()
        for part in preparing:  # the head last: what it looks at is prompted
            part.prepare(self.tuned, _Normalised(self), self.current_epoch)
        self.zero_grad(set_to_none=True)
        self.train()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        if self.elsewhere is not None:
            self.elsewhere.backward()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        learning.after_backward(self.trainer, self.tuned)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        learning.after_step(self.trainer, self.tuned, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        learning.evaluate_the_last_epoch(self.trainer)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._note(batch, self.logits(batch, "val"))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._note(batch, self(batch["image"]))

    def _note(self, batch: dict[str, Tensor], logits: Tensor) -> Tensor:
        logits = logits.float().cpu()
        self._seen.append((logits, batch["label"].cpu(), batch["index"].cpu()))
        return logits

    def on_validation_epoch_start(self) -> None:
        learning.share_statistics(self.trainer, self.tuned)
        self._seen = []

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        parts, self._seen = self._seen, []
        if self.trainer.world_size > 1:
            parts = _gather(parts)
        logits, labels, _ = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.evaluation = result = evaluate(logits, labels)
        values = {"loss": result.loss, "accuracy": result.accuracy, "ece": result.ece}
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def configure_model(self) -> None:
        # Lightning asks before fitting and before testing; there is a mesh under train.strategy fsdp alone.
        if self.device_mesh is None or isinstance(self.tuned, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.tuned.backbone.blocks:
            fully_shard(block.module, mesh=mesh)
        fully_shard(self.tuned, mesh=mesh)

    def configure_optimizers(self) -> Any:
        return learning.optimisation(self.trainer, self.tuned, self.optim, self.epochs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.keep_trained(checkpoint, self.tuned)
        checkpoint["evaluation"] = vars(self.evaluation) if self.evaluation else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.check_trained(checkpoint, self.tuned)
        self.evaluation = Evaluation(**checkpoint["evaluation"]) if checkpoint["evaluation"] else None


class _Normalised:
    """All training images, in order and the same in every process, as the model sees them, with their labels."""

    def __init__(self, task: Classification) -> None:
        self.task = task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        data: Any = self.task.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        for batch in data.train_in_order():
            batch = self.task.transfer_batch_to_device(batch, self.task.device, 0)
            yield self.task.normalised(batch["image"]), batch["label"]


def _gather(parts: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What all processes saw; an image that fills up the share of more than one process counts once."""
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, parts)
    logits, labels, index = (
        torch.cat(tensors) for tensors in zip(*(part for parts in everywhere for part in parts), strict=True)
    )
    _, first = np.unique(index.numpy(), return_index=True)
    return [(logits[first], labels[first], index[first])]
