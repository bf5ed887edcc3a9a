"""The data module of image classification: any layout, decoded once, the same batches every time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as L
from torch import Tensor
from torch.utils.data import DataLoader

from vpeft.config import DataConfig
from vpeft.data.cache import Images, memory_limit
from vpeft.data.images import Interpolation, UnreadableImage
from vpeft.data.listing import Split
from vpeft.data.loader import Batches, EpochSampler, make_loader, reached
from vpeft.data.locate import locate

Part = Literal["train", "val", "test"]


class ClassificationData(L.LightningDataModule):
    """Train, val and test batches {"image": uint8 [B, 3, H, W], "label": int64 [B], "index": int64 [B]}.

    Lists are read and checked at construction, images are decoded in `setup`; a split that does not fit into the
    memory that all share (`memory_limit`) is decoded again batch by batch. `index` is the position in
    `files(part)`. Under Lightning's Trainer pass `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        image_size: (H, W) of a batch.
        interpolation: The backbone's; `config.interpolation` overrides it.
        seed: Decides order and augmentation, together with the epoch.
        tested: Whether `setup` decodes the test split too.

    Raises:
        ValueError: Data or a part of it is missing or inconsistent.
        UnreadableImage: In `setup`; a file is not a whole image.
    """

    def __init__(
        self,
        config: DataConfig,
        image_size: tuple[int, int],
        interpolation: Interpolation,
        seed: int,
        tested: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.image_size, self.seed, self.tested = config, image_size, seed, tested
        self.interpolation: Interpolation = interpolation if config.interpolation == "auto" else config.interpolation
        listing = locate(config)
        self.classes: list[str] = listing.classes
        self.splits: dict[str, Split] = {"train": listing.train, "val": listing.val, "test": listing.test}
        self.provenance: dict[str, Any] = listing.provenance | {
            "counts": {part: len(split) for part, split in self.splits.items()},
            "image_size": list(image_size),
            "resize": config.resize,
            "interpolation": self.interpolation,
            "augment": config.augment,
            "skipped": 0,
        }
        if listing.provenance["warning"]:
            warnings.warn(listing.provenance["warning"], stacklevel=2)
        self._images: dict[Part, Images] = {}
        self._start = (0, 0)
        self._modules = 1

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image of a file becomes one of a batch."""
        config = self.config
        return {"resize": config.resize, "interpolation": self.interpolation, "augment": config.augment}

    def setup(self, stage: str | None = None) -> None:
        """Decode what is not decoded yet: the test split alone for `test`, else everything that the run uses.

        A file that cannot be read is so found before training and not after it, even in a split that is too
        large to be kept.
        """
        used: tuple[Part, ...] = ("train", "val", "test") if self.tested else ("train", "val")
        parts: tuple[Part, ...] = ("test",) if stage == "test" else used
        for part in parts:
            self._decoded(part)

    def files(self, part: Part) -> list[str]:
        """Paths of a split; `index` in a batch counts in this list, unreadable files left out."""
        return [str(file) for file in self._decoded(part).split.files]

    def share(self, like: ClassificationData, modules: int) -> None:
        """Decode no image that another module of this process decodes.

        Args:
            like: Of the same settings, but for the seed; or this one.
            modules: How many there are that each keep images of their own.
        """
        self._images, self.provenance, self._modules = like._images, like.provenance, modules

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled, augmented batches."""
        return self._loader("train", self.config.batch_size, training=True)

    def train_in_order(self) -> DataLoader[dict[str, Tensor]]:
        """The training images once, not shuffled, not augmented, the same in every process."""
        images = self._decoded("train")
        sampler = EpochSampler(len(images), self.config.eval_batch_size, self.seed, False, False, 0, 1, (0, 0))
        return make_loader(Batches(images, self.image_size, self.seed, "none"), sampler, self.config.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """Batches of val, or no loader where all training images are trained on."""
        return self._loader("val", self.config.eval_batch_size) if self.splits["val"].files else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of test."""
        return self._loader("test", self.config.eval_batch_size)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that a run resumed from here goes on with."""
        return reached(self.trainer, self._start)

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Make the next `train_dataloader` begin there."""
        self._start = (state_dict["epoch"], state_dict["batch"])

    def _loader(self, part: Part, batch_size: int, training: bool = False) -> DataLoader[dict[str, Tensor]]:
        images = self._decoded(part)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(
            len(images),
            batch_size,
            self.seed,
            shuffle=training,
            drop_last=training and self.config.drop_last,
            rank=rank,
            world=world,
            start=self._start if training else (0, 0),
        )
        batches = Batches(images, self.image_size, self.seed, self.config.augment if training else "none")
        return make_loader(batches, sampler, self.config.workers)

    def _decoded(self, part: Part) -> Images:
        if part not in self._images:
            height, width = self.image_size
            if part == "train" and self.config.augment == "crop_flip":
                height, width = height * 8 // 7, width * 8 // 7  # 256 for 224, as in VPT's FGVC runs
            images = self._read(self.splits[part], (height, width))
            self._images[part] = images
            self._record(part, images)
        return self._images[part]

    def _read(self, split: Split, size: tuple[int, int]) -> Images:
        # Every process of this machine keeps its own copy.
        share = memory_limit() // (self.trainer.num_devices if self.trainer else 1) // self._modules
        left = share - sum(images.nbytes for images in self._images.values())
        skip = self.config.on_error == "skip"
        try:
            return Images(split, size, self.config.resize, self.interpolation, skip, left)
        except UnreadableImage as error:
            hint = "" if skip else " With data.on_error skip, such files are left out."
            raise UnreadableImage(f"{error}{hint}") from error

    def _record(self, part: Part, images: Images) -> None:
        self.provenance["counts"][part] = len(images)
        self.provenance["skipped"] += len(images.skipped)
        for message in images.skipped:
            warnings.warn(f"Left out of {part}: {message}", stacklevel=2)
