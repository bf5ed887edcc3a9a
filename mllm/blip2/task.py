"""Training BLIP-2's first stage: the LightningModule of `kind: blip2`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor

from mllm.blip2 import retrieval
from mllm.blip2.data import PairData
from mllm.blip2.model import Blip2, Pairs
from mllm.features import Features
from mllm.job import Measures
from mllm.optimisation import optimiser
from mllm.schema import OptimConfig
from vpeft.tasks import learning
from vpeft.tasks.optimisation import learning_rates


class Pretraining(L.LightningModule):
    """The sum of the three losses on image-text pairs; batches are those of `mllm.blip2.data.PairBatches`.

    `evaluation` holds what the last validation or test measured (`mllm.blip2.retrieval.measure`). A Lightning
    checkpoint of this module holds only what is trained.

    Args:
        model: What trains.
        data: Its pairs.
        optim: Optimiser and schedule.
        candidates: Of `measure`.
        features: Of the frozen tower, where they are kept.
    """

    measure: ClassVar[str] = "score"

    def __init__(
        self, model: Blip2, data: PairData, optim: OptimConfig, candidates: int, features: Features | None = None
    ) -> None:
        super().__init__()
        self.model, self.optim, self.candidates = model, optim, candidates
        self._data, self._features = data, features
        self.evaluation: Measures | None = None
        self._seen: list[retrieval.Seen] = []
        self._lost: set[int] = set()
        self.strict_loading = False  # frozen weights are not in a checkpoint; on_load_checkpoint is strict

    def on_fit_start(self) -> None:
        if self._features is not None:
            self._features.make(self._data.pictures)

    on_test_start = on_fit_start

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        features = self._read(batch)[batch["picture"]]
        losses = self.model(Pairs(features, batch["text_ids"], batch["text_mask"], batch["image"], batch["caption"]))
        loss = torch.stack(list(losses.values())).sum() + learning.penalty(self.model.vision)
        size = len(batch["index"])
        self.log("train/loss", loss, batch_size=size, prog_bar=True)
        self.log_dict({f"train/{term}": value for term, value in losses.items()}, batch_size=size)
        self.log("train/temperature", self.model.connector.temperature.detach(), batch_size=size)
        rates = learning_rates(self.trainer.optimizers[0])
        self.log_dict({f"lr/{name}": rate for name, rate in rates.items()}, batch_size=size)
        return loss

    def _read(self, batch: dict[str, Tensor]) -> Tensor:
        """Features [J N C] of a batch's different images."""
        return self.model.features(batch["images"]) if self._features is None else self._features(batch["image_index"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        learning.after_backward(self.trainer, self.model.vision)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        learning.after_step(self.trainer, self.model.vision, step)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._lost |= set(batch["lost"].tolist())
        if not len(batch["index"]):
            return
        stage, picture = self.model.connector, batch["picture"]
        features = self._read(batch)
        images = stage.compared_images(stage.qformer(stage.norm(features))[0])
        texts = stage.compared_texts(batch["text_ids"], batch["text_mask"])
        number = torch.empty(len(features), dtype=torch.int64, device=picture.device)
        number[picture] = batch["image"]
        pairs = torch.stack([batch["image"], batch["caption"]], dim=1)
        words = batch["caption"], batch["text_ids"], batch["text_mask"], texts.float()
        seen = retrieval.Seen(number, images.float(), *words, pairs)
        self._seen.append(retrieval.Seen(*(field.cpu() for field in seen)))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        learning.share_statistics(self.trainer, self.model.vision)
        self._seen, self._lost = [], set()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        parts, lost = self._everywhere()
        if not parts:
            raise ValueError(
                f"All images of {split} were lost during the run, so there is nothing to evaluate; restore them."
            )
        with self.trainer.precision_plugin.forward_context():
            found = retrieval.measure(
                self.model.connector,
                retrieval.united(parts),
                self._features_of,
                self.candidates,
                self._data.config.eval_batch_size,
            )
        found.values["lost"] = len(lost)
        self.evaluation = found
        self.log_dict(
            {f"{split}/{name}": value for name, value in found.values.items()} | {f"{split}/loss": found.loss}
        )

    def _everywhere(self) -> tuple[list[retrieval.Seen], set[int]]:
        """What all processes have seen, and which pairs they have lost."""
        own, self._seen = ([retrieval.united(self._seen)] if self._seen else [], self._lost), []
        everywhere: list[Any] = [own]
        if self.trainer.world_size > 1:
            everywhere *= self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, own)
        return [one for seen, _ in everywhere for one in seen], {i for _, lost in everywhere for i in lost}

    def _features_of(self, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The features of images, a batch at a time: the tower looks at them again."""
        for batch in self._data.images(numbers):
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            yield batch["image"], self._read(batch)

    def configure_optimizers(self) -> Any:
        return optimiser(self.model.components(), self.optim, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.keep_trained(checkpoint, self.model, "model")
        checkpoint["evaluation"] = vars(self.evaluation) if self.evaluation else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.check_trained(checkpoint, self.model, "model")
        self.evaluation = Measures(**checkpoint["evaluation"]) if checkpoint["evaluation"] else None
