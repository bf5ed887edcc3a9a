"""Open-vocabulary segmentation: SAN trained on one vocabulary and measured on others.

Shapes: B images, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from vpeft.data.masks import ClassTable
from vpeft.data.openvocab import OpenVocabData
from vpeft.dense.iou import Absent, Areas, Scores, scores
from vpeft.dense.mask_losses import MaskLoss, masks_of
from vpeft.dense.openvocab_schema import MaskLossConfig, OpenVocabConfig, PolyOptimConfig
from vpeft.dense.san import SAN, label_map, pad_to_multiple
from vpeft.dense.san_weights import create


class OpenVocab(L.LightningModule):
    """Mask losses of a SAN; batches are those of `OpenVocabData`.

    `evaluation` holds what the last validation or test measured, by data set. A Lightning checkpoint of this module
    holds only what is trained.

    Args:
        san: CLIP and side network.
        train_table: Classes that are trained on; None where nothing is trained.
        test_tables: Classes of each data set that is evaluated, by its name, in the order of the loaders.
        loss: Matching and losses.
        optim: Optimiser and schedule.
        absent: What a class counts that is labelled nowhere and predicted somewhere.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        san: SAN,
        train_table: ClassTable | None,
        test_tables: dict[str, ClassTable],
        loss: MaskLossConfig,
        optim: PolyOptimConfig,
        absent: Absent = "ignore",
    ) -> None:
        super().__init__()
        self.san, self.train_table, self.test_tables = san, train_table, test_tables
        self.optim = optim
        self.absent: Absent = absent
        self.loss = None if train_table is None else MaskLoss(len(train_table.names), **asdict(loss))
        self.areas = {name: Areas(len(table.names), table.ignore) for name, table in test_tables.items()}
        self.evaluation: dict[str, Scores] = {}
        mean, std = normalization(san)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.strict_loading = False  # the frozen CLIP is not in a checkpoint; on_load_checkpoint is strict

    def forward(self, images: Tensor, classes: Sequence[str], size: tuple[int, int] | None = None) -> Tensor:
        """Classes int64 [B H W] of uint8 images [B 3 h w], at `size` or the images' own."""
        inner = (images.shape[-2], images.shape[-1])
        padded = pad_to_multiple(self.normalised(images))
        (proposals,) = self.san(padded, classes)
        return label_map(proposals, (padded.shape[-2], padded.shape[-1]), inner, size or inner)

    def normalised(self, images: Tensor) -> Tensor:
        """What CLIP and the side network see of uint8 images."""
        return (images.float() / 255 - self.mean) / self.std

    def on_fit_start(self) -> None:
        self.san.train()  # proposals of every supervised block; Lightning leaves the mode that it finds

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        table, loss = self.train_table, self.loss
        assert table is not None, "configure_optimizers refuses a module without training data"
        assert loss is not None
        proposals = self.san(self.normalised(batch["image"]), table.names)
        masks, labels = zip(*(masks_of(mask, table.ignore) for mask in batch["mask"]), strict=True)
        total, terms = loss(proposals, masks, labels)
        size = len(batch["image"])
        self.log("train/loss", total, batch_size=size, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=size)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        return total

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        name = list(self.test_tables)[dataloader_idx]
        mask = batch["mask"]
        found = self(batch["image"], self.test_tables[name].names, (mask.shape[-2], mask.shape[-1]))
        self.areas[name].add(found, mask, batch["index"])
        return found

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        for areas in self.areas.values():
            areas.reset()

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
        self.evaluation = {name: scores(areas.total(), self.absent) for name, areas in self.areas.items()}
        for name, found in self.evaluation.items():
            values = {"miou": found.miou, "macc": found.macc, "aacc": found.aacc}
            self.log_dict({f"{split}/{name}/{measure}": value for measure, value in values.items()})

    def configure_optimizers(self) -> Any:
        if self.loss is None:
            raise ValueError("There are no training data: build the module with the table of what is trained on.")
        undecayed = self.san.undecayed()
        trained = self.san.trained()
        groups = [
            {"name": "san", "params": [trained[name] for name in trained if name not in undecayed]},
            {"name": "san_undecayed", "params": [trained[name] for name in trained if name in undecayed]},
        ]
        groups[1]["weight_decay"] = 0.0
        built = torch.optim.AdamW(groups, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        poly = torch.optim.lr_scheduler.PolynomialLR(built, total_iters=steps, power=self.optim.power)
        return {"optimizer": built, "lr_scheduler": {"scheduler": poly, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=self.optim.clip, gradient_clip_algorithm="norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"san.{name}" for name in self.san.trained()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name in kept}
        checkpoint["evaluation"] = {name: asdict(found) for name, found in self.evaluation.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"san.{name}" for name in self.san.trained()}
        if wrong := sorted(kept ^ set(checkpoint["state_dict"])):
            raise ValueError(
                f"The checkpoint does not fit this SAN: {', '.join(wrong[:3])} are only in one of them. Resume with "
                "the config saved beside it."
            )
        self.evaluation = {name: Scores(**found) for name, found in checkpoint["evaluation"].items()}


def normalization(san: SAN) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of a CLIP's images: its own, or OpenAI's."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    visual = san.clip.visual
    mean = getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def build(config: OpenVocabConfig, training: bool = True) -> tuple[OpenVocab, OpenVocabData]:
    """The module and the data of a configuration.

    Args:
        config: Checked with `vpeft.schema.mistakes`.
        training: False for an evaluation, which needs no training images.

    Raises:
        ValueError: data, a weights file or an option does not fit.
        RuntimeError: CLIP's weights could not be had.
    """
    data = OpenVocabData(config.data, config.seed, training)  # first: it is quick to say what is missing
    san = create(config.model, config.seed)
    module = OpenVocab(
        san,
        data.train_set.table if data.train_set else None,
        {one.name: one.table for one in data.test_sets},
        config.loss,
        config.optim,
        config.data.absent,
    )
    return module, data
