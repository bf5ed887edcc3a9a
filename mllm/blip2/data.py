"""Images and their captions, one of each in a pair.

Shapes: B pairs of a batch, J different images of it, H W pixels, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mllm.blip2.text import Words
from mllm.data.changes import CropFlip, changes_of
from mllm.data.images import Look, Pictures
from mllm.data.locate import locate
from mllm.data.parts import Parts
from mllm.data.shelf import Shelf
from mllm.data_schema import DataConfig
from mllm.sample import Sample
from vpeft.data.cache import memory_limit
from vpeft.data.images import Interpolation, UnreadableImage
from vpeft.data.loader import EpochSampler, Fetch, make_loader, reached


class PairBatches(Dataset[dict[str, Tensor]]):
    """The batch at (epoch, positions).

    `index` [B], positions of the pairs; `image` and `caption` [B] number different images and captions of the data set;
    `text_ids` and `text_mask` [B T]; `picture` [B], which of the batch's J different images belongs to a pair, and
    `images` uint8 [J 3 H W], or `image_index` [J], their numbers.

    A pair whose image is lost in the middle of a run is replaced by one of its batch where all batches must be of one
    size, and left out elsewhere; `lost` are the positions of such pairs.

    Args:
        samples: The split.
        captions: Number of each caption.
        pictures: Images of all splits.
        words: Turns captions into ids.
        by_index: Serve `image_index` instead of `images`.
        one_size: Of all batches, as training needs it.
        changes: What is done to every image; pairs of a batch that show one image show the same change of it.
    """

    def __init__(
        self,
        samples: Shelf,
        captions: Mapping[str, int],
        pictures: Pictures,
        words: Words,
        by_index: bool,
        one_size: bool,
        changes: CropFlip | None = None,
    ) -> None:
        self.samples, self.captions, self.pictures, self.words = samples, captions, pictures, words
        self.by_index, self.one_size, self.changes = by_index, one_size, changes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        index = torch.tensor(fetch[1], dtype=torch.int64)
        chosen = [self.samples[i] for i in fetch[1]]
        image = torch.tensor([self.pictures.position(one.images[0]) for one in chosen], dtype=torch.int64)
        different, picture = image.unique(return_inverse=True)
        pixels = different if self.by_index else self._pixels(fetch, different, picture)
        failed = self.pictures.failed[image].clone()
        lost = index[failed]
        if len(lost):
            kept = self._kept(image, failed)
            index, image, chosen = index[kept], image[kept], [chosen[i] for i in kept.tolist()]
            left, picture = image.unique(return_inverse=True)
            pixels = pixels[torch.searchsorted(different, left)]
        texts = [caption(one) for one in chosen]
        ids, mask = self.words.batch(texts)
        return {
            "index": index,
            "lost": lost,
            "image": image,
            "caption": torch.tensor([self.captions[text] for text in texts], dtype=torch.int64),
            "picture": picture,
            "image_index" if self.by_index else "images": pixels,
            "text_ids": ids,
            "text_mask": mask,
        }

    def _pixels(self, fetch: Fetch, different: Tensor, picture: Tensor) -> Tensor:
        """[J 3 H W]."""
        if self.changes is None:
            return self.pictures.take(different)
        epoch, positions = fetch
        first = [positions[int((picture == j).nonzero()[0, 0])] for j in range(len(different))]
        return self.pictures.changed(different.tolist(), [self.changes.at(epoch, i, 0) for i in first])

    def _kept(self, image: Tensor, failed: Tensor) -> Tensor:
        lost, there = self.pictures.sources[int(image[failed][0])], (~failed).nonzero()[:, 0]
        if self.one_size and not len(there):
            raise UnreadableImage(f"{lost} and all other images of a batch were lost during the run; restore them.")
        warnings.warn(f"Left out: {lost} was lost or damaged during the run.", stacklevel=2)
        return torch.where(failed, there[0], torch.arange(len(image))) if self.one_size else there


class ImageBatches(Dataset[dict[str, Tensor]]):
    """The images at (0, numbers), each of which has been read before: `image` [J], and `images` or `image_index`."""

    def __init__(self, pictures: Pictures, by_index: bool) -> None:
        self.pictures, self.by_index = pictures, by_index

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        image = torch.tensor(fetch[1], dtype=torch.int64)
        if self.by_index:
            return {"image": image, "image_index": image}
        pixels, failed = self.pictures.take(image), self.pictures.failed[image]
        if failed.any():
            lost = self.pictures.sources[int(image[failed][0])]
            raise UnreadableImage(f"{lost} was lost in the middle of an evaluation; restore it, and resume the run.")
        return {"image": image, "images": pixels}


class PairData(L.LightningDataModule):
    """Batches as `PairBatches` makes them, of `train`, `val` and `test`; the last, smaller one of training is left out.

    Files are read and samples checked at construction; `setup` decodes the images. `provenance` counts the captions
    that are cut. Under Lightning's Trainer pass `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        words: Turns captions into ids.
        image_size: (H, W) of the vision tower.
        interpolation: Its own; `config.interpolation` overrides it.
        mean: Its mean, 0 to 1, which padding is filled with.
        seed: Decides the order, together with the epoch.
        by_index: Serve numbers of images instead of pixels, for features that are kept.

    Raises:
        ValueError: data is missing, or a sample is no pair of one image and one text.
    """

    def __init__(
        self,
        config: DataConfig,
        words: Words,
        image_size: tuple[int, int],
        interpolation: Interpolation,
        mean: tuple[float, ...],
        seed: int,
        by_index: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.words, self.seed, self.by_index = config, words, seed, by_index
        interpolation = interpolation if config.interpolation == "auto" else config.interpolation
        red, green, blue = (int(255 * channel) for channel in mean)
        self.look = Look(image_size, config.aspect, interpolation, (red, green, blue))
        found, facts = locate(config)
        self._samples = Parts({part: found[part] for part in ("train", "val", "test")})
        texts = {part: [_checked(one) for one in samples] for part, samples in self._samples.items()}
        different = dict.fromkeys(text for part in texts.values() for text in part)
        self._captions = {text: number for number, text in enumerate(different)}
        self.provenance: dict[str, Any] = facts | {
            "task": config.task,
            "counts": {part: len(samples) for part, samples in self._samples.items()},
            "captions": len(different),
            "cut": sum(words.ids(text)[1] for text in different),
            **self.preparation,
            "skipped": 0,
        }
        self._pictures: Pictures | None = None
        self._start = (0, 0)

    @property
    def preparation(self) -> dict[str, Any]:
        """How a pair becomes one of a batch."""
        look = self.look
        return {
            "image_size": list(look.size),
            "aspect": look.aspect,
            "interpolation": look.interpolation,
            "fill": list(look.fill),
            "max_length": self.words.max_length,
        }

    @property
    def pictures(self) -> Pictures:
        """The images of all parts, each once."""
        self.setup()
        assert self._pictures is not None
        return self._pictures

    @property
    def skipped(self) -> int:
        """Images that could not be read so far, in all loader processes."""
        return int(self.pictures.failed.sum())

    def setup(self, stage: str | None = None) -> None:
        """Decode the images, or see that they are there where they do not fit into memory."""
        if self._pictures is not None:
            return
        limit = memory_limit() // (self.trainer.num_devices if self.trainer else 1)  # every process has its own copy
        images = (image for samples in self._samples.values() for sample in samples for image in sample.images)
        self._pictures = Pictures(images, self.look, self.config.on_missing == "skip", limit)
        self.provenance["images"] = len(self._pictures)
        for reason in self._pictures.reasons:
            warnings.warn(f"Left out: {reason}", stacklevel=2)
        self._samples.leave_out(self._pictures)
        self._count()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches, all of one size.

        Raises:
            ValueError: there are not enough pairs for one.
        """
        rank, world = self._process()
        batches, size = self._batches("train", training=True), self.config.batch_size
        if -(-len(batches) // world) < size:
            raise ValueError(
                f"{self.config.task} has {len(batches)} pairs to train on, which do not fill one batch of {size} in "
                f"each process ({world}); lower data.batch_size."
            )
        sampler = EpochSampler(len(batches), size, self.seed, True, True, rank, world, self._start)
        return make_loader(batches, sampler, self.config.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """The pairs of val in their order, or no loader where there are none."""
        return self._in_order("val") if len(self._samples["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """The pairs of test in their order, or no loader where there are none."""
        return self._in_order("test") if len(self._samples["test"]) else []

    def images(self, numbers: Tensor) -> DataLoader[dict[str, Tensor]]:
        """Images as `ImageBatches` serves them, as many at once as an evaluation has pairs."""
        blocks = [(0, block.tolist()) for block in numbers.split(self.config.eval_batch_size)]
        return make_loader(ImageBatches(self.pictures, self.by_index), blocks, self.config.workers)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that a run resumed from here goes on with, and which pairs it has."""
        return reached(self.trainer, self._start) | {"samples": self._samples.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next `train_dataloader` begin there, with the pairs that there were.

        Raises:
            ValueError: The pairs are others.
        """
        self.setup()
        self._start = (state_dict["epoch"], state_dict["batch"])
        self._samples.load_state_dict(state_dict["samples"])
        self._count()

    def _in_order(self, part: str) -> DataLoader[dict[str, Tensor]]:
        rank, world = self._process()
        batches = self._batches(part)
        sampler = EpochSampler(len(batches), self.config.eval_batch_size, self.seed, False, False, rank, world)
        return make_loader(batches, sampler, self.config.workers)

    def _batches(self, part: str, training: bool = False) -> PairBatches:
        pictures = self.pictures  # first: it leaves samples out
        changes = changes_of(self.config, self.look, self.seed) if training else None
        return PairBatches(self._samples[part], self._captions, pictures, self.words, self.by_index, training, changes)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _count(self) -> None:
        self.provenance["counts"] = {part: len(samples) for part, samples in self._samples.items()}
        self.provenance["skipped"] = self._samples.skipped


def caption(sample: Sample) -> str:
    """The text of a pair, in one line."""
    return " ".join(sample.turns[-1].text.split())


def _checked(sample: Sample) -> str:
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if len(sample.images) != 1 or len(answers) != 1:
        raise ValueError(
            f"{sample.where} has {len(sample.images)} images and {len(answers)} answers; kind blip2 learns from pairs "
            "of one image and one caption. Give captions, or train on conversations with kind mllm."
        )
    return caption(sample)
