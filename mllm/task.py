"""Training a multimodal language model: the LightningModule of `kind: mllm`.

Shapes: B sequences, L positions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from mllm.data.module import MultimodalData
from mllm.evaluation import Answers, answer_all
from mllm.features import Features
from mllm.job import Measures
from mllm.optimisation import optimiser
from mllm.schema import EvaluationConfig, OptimConfig
from mllm.sequence import IGNORED
from mllm.vlm import VLM, predicting
from mllm.weighting import Weighting
from vpeft.tasks import learning
from vpeft.tasks.optimisation import learning_rates


class Instruct(L.LightningModule):
    """Next-word prediction of the answers; batches are those of `MultimodalData`.

    A Lightning checkpoint of this module holds only what is trained. `evaluation` holds what the last validation or
    test measured: the loss, and after a test the scored answers.

    Args:
        model: What trains.
        data: Its samples, for the answers of the test.
        optim: Optimiser and schedule.
        evaluation: How the test is scored.
        features: Of the frozen tower, where they are kept.
    """

    measure: ClassVar[str] = "loss"

    def __init__(
        self,
        model: VLM,
        data: MultimodalData,
        optim: OptimConfig,
        evaluation: EvaluationConfig,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        self.model, self.optim, self.scoring = model, optim, evaluation
        self._data, self._features = data, features
        self.evaluation: Measures | None = None
        self.answers: Answers | None = None
        self._sum = self._words = 0.0
        self._weighting = Weighting()
        self.strict_loading = False  # frozen weights are not in a checkpoint; on_load_checkpoint is strict

    def on_fit_start(self) -> None:
        # Lightning leaves modes as they are, and a language model is loaded in eval mode: LoRA's dropout would be off,
        # and nothing recomputed.
        self.model.train()
        self._make_features()

    def on_test_start(self) -> None:
        self._make_features()

    def _make_features(self) -> None:
        if self._features is not None:
            self._features.make(self._data.pictures)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        words = predicting(batch).sum()
        weight, whole = self._weighting.add(words, self.trainer)
        mean, penalty = self.model.loss(self._complete(batch)), learning.penalty(self.model.vision)
        loss = weight * mean + (whole * penalty if self._last(batch_idx) else 0.0)
        size = len(batch["index"])
        self.log("train/loss", mean.detach() + penalty, batch_size=size, prog_bar=True)
        self.log("train/words", words.float(), batch_size=size, reduce_fx="sum")
        rates = learning_rates(self.trainer.optimizers[0])
        self.log_dict({f"lr/{name}": rate for name, rate in rates.items()}, batch_size=size)
        return loss

    def _last(self, batch_idx: int) -> bool:
        """Whether a batch is the last of its optimiser step."""
        done = batch_idx + 1
        return done % self.trainer.accumulate_grad_batches == 0 or done >= self.trainer.num_training_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._weighting.finish(trained, self.trainer.accumulate_grad_batches)
        learning.after_backward(self.trainer, self.model.vision)
        for name, parameter in self.model.components()["connector"]:
            if "gate" in name.rpartition(".")[2]:
                gate = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                self.log(f"gates/{name.removeprefix('connector.')}", gate.detach().tanh().abs().mean())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        learning.after_step(self.trainer, self.model.vision, step)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Shares of processes are filled up with samples that others have: those with another remainder.
        repeated = batch["index"] % self.trainer.world_size != self.trainer.global_rank
        batch = batch | {"labels": batch["labels"].masked_fill(repeated[:, None], IGNORED)}
        words = int(predicting(batch).sum())
        self._sum += float(self.model.loss(self._complete(batch))) * words
        self._words += words

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self._sum = self._words = 0.0

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        loss = self._mean_loss()
        self.log("val/loss", loss)
        self.evaluation = Measures(loss, None, {})

    def on_test_epoch_end(self) -> None:
        loss, values, score = self._mean_loss(), {}, None
        if self.scoring.score != "none":
            self.answers = answer_all(self.model, self._data, "test", self.scoring, self._features, self.trainer)
            values, score = self.answers.values(), self.answers.score
        self.log_dict({"test/loss": loss} | {f"test/{k}": v for k, v in values.items() if isinstance(v, float)})
        self.evaluation = Measures(loss, score, values)

    def _mean_loss(self) -> float:
        both = self.trainer.strategy.reduce(torch.tensor([self._sum, self._words], device=self.device), reduce_op="sum")
        total, words = (float(one) for one in both)
        return total / words if words else math.nan

    def _complete(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch with the features of its images, where they are kept."""
        if self._features is None:
            return batch
        return batch | {"features": self._features(batch["image_index"])}

    def configure_model(self) -> None:
        # Lightning asks before fitting and before testing; there is a mesh under train.strategy fsdp alone.
        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "loss")

    def configure_optimizers(self) -> Any:
        return optimiser(self.model.components(), self.optim, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.keep_trained(checkpoint, self.model, "model")
        checkpoint["evaluation"] = vars(self.evaluation) if self.evaluation else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning.check_trained(checkpoint, self.model, "model")
        self.evaluation = Measures(**checkpoint["evaluation"]) if checkpoint["evaluation"] else None
