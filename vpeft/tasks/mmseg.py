"""mmsegmentation's own models, trained by Lightning.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from vpeft.config import OptimConfig
from vpeft.dense.iou import Areas, Scores, scores
from vpeft.dense.mmseg import VpeftBackbone, need
from vpeft.tasks import learning
from vpeft.tasks.optimisation import build_schedule, optimizer, parameter_groups
from vpeft.tuned import Tuned


class MMSegmentation(L.LightningModule):
    """Trains a model of mmseg, with its own losses and its own inference.

    Batches are this project's, {image: uint8 [B 3 H W] RGB, mask, index}, or those of mmseg's loaders, {inputs,
    data_samples}, which the model's data preprocessor takes. `evaluation` holds what the last validation or test
    measured. A checkpoint holds all of the model but what a `VpeftBackbone` keeps frozen.

    Args:
        model: What `vpeft.dense.mmseg.build` gives.
        classes: Their names.
        optim: Optimiser and schedule; its `head_lr` is that of the heads, and of mmseg's own necks.
        epochs: Length of the run, in which `optim.warmup_epochs` are counted.
        mean: Channel means of images of this project, on the scale 0..1; the backbone's own normalization.
        std: Channel standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        optim: OptimConfig,
        epochs: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.classes, self.optim, self.epochs = list(classes), optim, epochs
        self.register_buffer("mean", learning.channels(tuple(mean)), persistent=False)
        self.register_buffer("std", learning.channels(tuple(std)), persistent=False)
        self.areas = Areas(len(classes))
        self.evaluation: Scores | None = None
        self.strict_loading = False  # what is frozen is not in a checkpoint

    @property
    def tuned(self) -> Tuned | None:
        """Backbone and methods, if they are this project's."""
        return self.model.backbone.tuned if isinstance(self.model.backbone, VpeftBackbone) else None

    def setup(self, stage: str) -> None:
        if self.trainer.world_size == 1:  # SyncBatchNorm needs several processes
            self.model = need("mmengine.model").revert_sync_batchnorm(self.model)

    def on_fit_start(self) -> None:
        # Its buffers follow the model, but where it sends images does not.
        self.model.data_preprocessor.to(self.device)

    on_validation_start = on_test_start = on_fit_start

    def prepare(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[Any]]:
        """Normalised images [B 3 H W] and mmseg's data samples of a batch."""
        if "inputs" in batch:
            ready = self.model.data_preprocessor(batch, self.training)
            return ready["inputs"], ready["data_samples"]
        structures, pixels = need("mmseg.structures"), need("mmengine.structures")
        size = tuple(batch["image"].shape[-2:])
        samples = []
        for mask in batch["mask"]:
            sample = structures.SegDataSample(gt_sem_seg=pixels.PixelData(data=mask[None]))
            sample.set_metainfo({"img_shape": size, "pad_shape": size, "ori_shape": tuple(mask.shape)})
            samples.append(sample)
        return learning.normalise(batch["image"], self.mean, self.std), samples

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        images, samples = self.prepare(batch)
        loss, terms = self.model.parse_losses(self.model(images, samples, mode="loss"))
        if self.tuned:
            terms["loss"] = loss = loss + learning.penalty(self.tuned)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(images))
        learning.log_step(self, {}, len(images))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.tuned:
            learning.after_backward(self.trainer, self.tuned)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        if self.tuned:
            learning.after_step(self.trainer, self.tuned, step)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        images, samples = self.prepare(batch)
        first = batch_idx * len(images)  # mmseg's loaders do not say which images they are
        index = batch.get(
            "index", torch.arange(first, first + len(images)) * self.trainer.world_size + self.global_rank
        )
        for at, sample in zip(index, self.model(images, samples, mode="predict"), strict=True):
            self.areas.add(sample.pred_sem_seg.data, sample.gt_sem_seg.data, at[None])

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.areas.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        self.evaluation = result = scores(self.areas.total())
        self.log_dict({f"{split}/miou": result.miou, f"{split}/macc": result.macc, f"{split}/aacc": result.aacc})

    def configure_optimizers(self) -> Any:
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"method": [], "backbone": [], "head": []}
        if self.tuned:
            groups |= self.tuned.parameter_groups()
        own = {id(parameter) for part in groups.values() for _, parameter in part}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                groups["backbone" if name.startswith("backbone.") else "head"].append((name, parameter))
        levels = self.tuned.levels() if self.tuned else None
        built = optimizer(parameter_groups(groups, self.optim, levels), self.optim)
        return build_schedule(built, self.optim, int(self.trainer.estimated_stepping_batches), self.epochs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self._frozen()
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored, kept = set(checkpoint["state_dict"]), set(self.state_dict()) - self._frozen()
        if stored != kept:
            raise ValueError(
                f"The checkpoint does not fit this model: it lacks {sorted(kept - stored)[:3] or 'nothing'} and has "
                f"{sorted(stored - kept)[:3] or 'nothing'} too many. Resume with the config it was trained with."
            )

    def _frozen(self) -> set[str]:
        body = self.model.backbone
        return {f"model.backbone.{name}" for name in body.frozen()} if isinstance(body, VpeftBackbone) else set()
