"""The data module of multi-task dense prediction: the same batches every time, labels changed with their images.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vpeft.data.loader import EpochSampler, Fetch, make_loader, reached
from vpeft.data.pascal_context import PascalContext
from vpeft.data.shapes import Shapes

if TYPE_CHECKING:
    from vpeft.dense.multitask_schema import MultiTaskDataConfig

_CHANGE = 1  # a stream of random numbers beside that of the order


class Scenes(Protocol):
    """A split: scenes by index, each an image and its labels."""

    outputs: ClassVar[dict[str, int]]
    classes: ClassVar[dict[str, tuple[str, ...]]]

    def __len__(self) -> int: ...
    def load(self, index: int) -> dict[str, Tensor]: ...


class SceneBatches(Dataset[dict[str, Tensor]]):
    """Whole batches {image: uint8 [B, 3, H, W], index: int64 [B], and the labels of each task [B, ...]}.

    Args:
        scenes: A split.
        tasks: Which labels a batch holds.
        seed: With epoch and position it decides which images are mirrored.
        flip: Mirror half of the images; normals then point to the other side.
    """

    def __init__(self, scenes: Scenes, tasks: list[str], seed: int = 0, flip: bool = False) -> None:
        self.scenes, self.tasks, self.seed, self.flip = scenes, tasks, seed, flip

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        epoch, positions = fetch
        loaded = [self._one(epoch, position) for position in positions]
        batch = {name: torch.stack([scene[name] for scene in loaded]) for name in ("image", *self.tasks)}
        return {**batch, "index": torch.tensor(positions, dtype=torch.int64)}

    def _one(self, epoch: int, position: int) -> dict[str, Tensor]:
        scene = self.scenes.load(position)
        if not self.flip or np.random.default_rng([self.seed, epoch, _CHANGE, position]).random() < 0.5:
            return scene
        scene = {name: tensor.flip(-1) for name, tensor in scene.items()}
        if "normals" in scene:
            scene["normals"] = scene["normals"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
        return scene


class MultiTaskData(L.LightningDataModule):
    """Train and val batches of PASCAL-Context, or of rendered scenes where there is no `root`; val is test too.

    Under Lightning's Trainer pass `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        image_size: (H, W) of a batch.
        seed: Decides order and mirroring, together with the epoch.

    Raises:
        ValueError: data are missing.
    """

    def __init__(self, config: MultiTaskDataConfig, image_size: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.config, self.image_size, self.seed = config, image_size, seed
        self.splits: dict[str, Scenes] = {"train": self._scenes("train"), "val": self._scenes("val")}
        self.outputs = {task: self.splits["train"].outputs[task] for task in config.tasks}
        self.classes = {task: names for task, names in self.splits["train"].classes.items() if task in config.tasks}
        self._start = (0, 0)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the images come from, for the row."""
        rendered = self.config.root is None
        counts = {part: len(scenes) for part, scenes in self.splits.items()}
        return {
            "format": "rendered" if rendered else "pascal_mt",
            "task": name_of(self.config),
            "group": None,
            "synthetic": rendered,
            "split": "train",
            "lossy": False,
            "warning": None,
            "statement": "test is val, on which nothing is chosen",
            "licence": None,
            "packages": [],
            "tasks": list(self.config.tasks),
            "counts": counts | {"test": counts["val"]},
            "skipped": 0,
        }

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image of a file becomes one of a batch; scenes are rendered in its size."""
        return {"resize": "squash", "interpolation": "bicubic"}

    def _scenes(self, part: Literal["train", "val"]) -> Scenes:
        config = self.config
        if config.root is not None:
            return PascalContext(config.root.expanduser(), part, config.tasks, self.image_size)
        count = config.train_scenes if part == "train" else config.val_scenes
        return Shapes(count, self.image_size, ("train", "val").index(part), self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches, half of the images mirrored where `augment` is flip."""
        return self._loader("train", self.config.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of val."""
        return self._loader("val", self.config.eval_batch_size)

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that a run resumed from here goes on with."""
        return reached(self.trainer, self._start)

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Make the next `train_dataloader` begin there."""
        self._start = (state_dict["epoch"], state_dict["batch"])

    def _loader(self, part: str, batch_size: int, training: bool = False) -> DataLoader[dict[str, Tensor]]:
        scenes, workers = self.splits[part], self.config.workers
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        start = self._start if training else (0, 0)
        last = training and self.config.drop_last
        sampler = EpochSampler(len(scenes), batch_size, self.seed, training, last, rank, world, start)
        batches = SceneBatches(scenes, self.config.tasks, self.seed, training and self.config.augment == "flip")
        return make_loader(batches, sampler, workers)


def name_of(config: MultiTaskDataConfig) -> str:
    """What the data is called; rendered scenes do not bear the name of images that others have."""
    if config.root is None:
        return "shapes"
    return "pascal_context" if config.task == "shapes" else config.task
