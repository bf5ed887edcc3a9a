"""The data module of open-vocabulary segmentation: one data set to train on, several to evaluate.

Training images are changed as in MaskFormer's recipe, which SAN uses: shorter side at random, crop, colours, mirror,
padding with 128. Images that are evaluated are resized to a shorter side; their masks keep the original size.

    B images, H W pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as L
import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vpeft.data.augment import distort, draw_distortion
from vpeft.data.images import decode
from vpeft.data.loader import EpochSampler, Fetch, make_loader, reached
from vpeft.data.opencv import resize_nearest
from vpeft.data.openvocab_benchmarks import Labelled, locate
from vpeft.dense.openvocab_schema import OpenVocabDataConfig

PAD = 128  # what the official code fills up with, before normalisation
_SIZES = tuple(64 * x for x in range(5, 16))  # 0.5 to 1.5 times 640


class OpenVocabData(L.LightningDataModule):
    """Training batches, and one loader for each data set that is evaluated.

    Training: {"image": uint8 [B 3 crop crop], "mask": int64 [B crop crop], "index": int64 [B]}. Evaluation, one image
    at a time: {"image": uint8 [1 3 h w], "mask": int64 [1 H W], "index": int64 [1]}, the mask of the image's own size.
    What a mask ignores is `train_set.table.ignore` and `test_sets[i].table.ignore`: 65535 where 255 is a class. Under
    Lightning's Trainer pass `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        seed: Decides order and changes, together with the epoch.
        training: Whether the training images are listed.

    Raises:
        ValueError: data or a part of it is missing or inconsistent.
    """

    def __init__(self, config: OpenVocabDataConfig, seed: int = 0, training: bool = True) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        root = config.root.expanduser()
        self.train_set = locate(config.train, root, "train", config.check_counts) if training else None
        self.test_sets = [locate(name, root, "val", config.check_counts) for name in config.tests]
        if len({one.name for one in self.test_sets}) < len(self.test_sets):
            raise ValueError(f"data.tests names a data set twice: {', '.join(config.tests)}.")
        self._start = (0, 0)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled, changed batches; a smaller last one is left out."""
        if self.train_set is None:
            raise ValueError("This data module lists no training images; build it with training=True.")
        return self._loader(TrainImages(self.train_set, self.config, self.seed), self.config.batch_size, True)

    def val_dataloader(self) -> list[DataLoader[dict[str, Tensor]]]:
        """One loader a data set, in the order of `test_sets`."""
        return [self._loader(TestImages(one, self.config), 1, False) for one in self.test_sets]

    def test_dataloader(self) -> list[DataLoader[dict[str, Tensor]]]:
        """The same: the data sets of open vocabularies have no other labelled part."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that a run resumed from here goes on with."""
        return reached(self.trainer, self._start)

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Make the next `train_dataloader` begin there."""
        self._start = (state_dict["epoch"], state_dict["batch"])

    def _loader(
        self, images: TrainImages | TestImages, batch_size: int, training: bool
    ) -> DataLoader[dict[str, Tensor]]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        start = self._start if training else (0, 0)
        sampler = EpochSampler(len(images), batch_size, self.seed, training, training, rank, world, start)
        return make_loader(images, sampler, self.config.workers)


class TrainImages(Dataset[dict[str, Tensor]]):
    """Whole training batches; what is done to an image depends on seed, epoch and position alone."""

    def __init__(self, labelled: Labelled, config: OpenVocabDataConfig, seed: int) -> None:
        self.labelled, self.config, self.seed = labelled, config, seed
        self.sizes = tuple(config.sizes) or _SIZES

    def __len__(self) -> int:
        return len(self.labelled.files)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        epoch, positions = fetch
        pairs = [self._one(epoch, position) for position in positions]
        return {
            "image": torch.stack([_planes(image) for image, _ in pairs]),
            "mask": torch.from_numpy(np.stack([mask for _, mask in pairs]).astype(np.int64)),
            "index": torch.tensor(positions),
        }

    def _one(self, epoch: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        random = RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch, position])))
        image, mask = _pair(self.labelled, position)
        size = shorter_side(mask.shape, int(random.choice(self.sizes)), self.config.long_side)
        mask, crop = resize_nearest(mask, size), self.config.crop
        top, left = (random.randint(max(side - crop, 0) + 1) for side in size)
        pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        pixels, mask = (one[top : top + crop, left : left + crop] for one in (pixels, mask))
        if self.config.distort:
            pixels = distort(pixels, draw_distortion(random))
        if random.random_sample() < self.config.flip:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        filled = np.full((crop, crop, 3), PAD, np.uint8)
        ignored = np.full((crop, crop), self.labelled.table.ignore, mask.dtype)
        height, width = mask.shape
        filled[:height, :width], ignored[:height, :width] = pixels, mask
        return filled, ignored


class TestImages(Dataset[dict[str, Tensor]]):
    """One image a batch, resized; its mask at the original size."""

    __test__ = False  # pytest would collect it

    def __init__(self, labelled: Labelled, config: OpenVocabDataConfig) -> None:
        self.labelled, self.config = labelled, config

    def __len__(self) -> int:
        return len(self.labelled.files)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        _, (position,) = fetch
        image, mask = _pair(self.labelled, position)
        pixels = resized(image, self.config.short_side, self.config.long_side)
        return {
            "image": pixels[None],
            "mask": torch.from_numpy(mask.astype(np.int64))[None],
            "index": torch.tensor([position]),
        }


def resized(image: Image.Image, short: int = 640, long: int = 2560) -> Tensor:
    """An RGB image as uint8 [3 h w] whose shorter side is `short`, unless the longer one would pass `long`."""
    height, width = shorter_side((image.height, image.width), short, long)
    return _planes(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)))


def shorter_side(shape: Sequence[int], short: int, long: int) -> tuple[int, int]:
    """(h, w) with the shorter side at `short`, or the longer at `long` where that is smaller, as in detectron2."""
    height, width = shape
    scale = short / min(height, width)
    size = (short, scale * width) if height < width else (scale * height, short)
    if max(size) > long:
        size = tuple(side * long / max(size) for side in size)
    return int(size[0] + 0.5), int(size[1] + 0.5)


def _pair(labelled: Labelled, position: int) -> tuple[Image.Image, np.ndarray]:
    path = labelled.files.images[position]
    image, mask = decode(path), labelled.read(labelled.files.masks[position])
    if (image.height, image.width) != mask.shape:
        raise ValueError(
            f"{labelled.files.masks[position]} is {mask.shape[1]}x{mask.shape[0]} pixels and its image {path} "
            f"{image.width}x{image.height}; a mask has the size of its image."
        )
    return image, mask


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
