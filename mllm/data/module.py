"""The data module of images with text: the same batches every time, wherever a run is resumed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from mllm.data.batches import Batches, Writing
from mllm.data.changes import changes_of
from mllm.data.images import Look, Pictures
from mllm.data.locate import locate
from mllm.data.order import GroupedSampler, first_fit
from mllm.data.parts import Parts
from mllm.data.shelf import Shelf
from mllm.data_schema import DataConfig
from mllm.templates import AnyTemplate, Template, find
from vpeft.data.cache import memory_limit
from vpeft.data.images import Interpolation
from vpeft.data.loader import EpochSampler, make_loader, reached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["train", "val", "test", "held_out"]


class MultimodalData(L.LightningDataModule):
    """Batches as `mllm.collate` makes them, of `train`, `val`, `test` and what other parts a set has.

    Files are read and samples checked at construction. `setup` decodes the images, or sees that they are there where
    they do not fit into memory, and writes every sample once, so that one that is too long is found before training.
    `provenance` counts samples whose text is cut.
    `index` in a batch counts in `samples(part)`; `image_index` counts in `pictures`. Under Lightning's Trainer pass
    `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        tokenizer: Of the language model.
        tokens_per_image: Positions of an image, `tokens` of the connector.
        image_size: (H, W) of the vision tower.
        interpolation: Its own; `config.interpolation` overrides it.
        mean: Its mean, 0 to 1, which padding is filled with.
        seed: Decides order and rows, together with the epoch.
        by_index: Serve positions of images instead of pixels, for features that are kept.
        instruction_tokenizer: Of a connector that reads the question.
        parts: Which parts are read; None is all.
        template: Of an adapter; None is what `config` names.

    Raises:
        ValueError: Data or a part of it is missing, or a sample has a fault; in `setup`, if one does not fit.
        UnreadableImage: In `setup`, or later in a set too large for memory; an image cannot be read.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_image: int,
        image_size: tuple[int, int],
        interpolation: Interpolation,
        mean: tuple[float, ...],
        seed: int,
        by_index: bool = False,
        instruction_tokenizer: PreTrainedTokenizerBase | None = None,
        parts: Sequence[str] | None = None,
        template: AnyTemplate | None = None,
    ) -> None:
        super().__init__()
        self.config, self.seed, self.by_index = config, seed, by_index
        interpolation = interpolation if config.interpolation == "auto" else config.interpolation
        red, green, blue = (int(255 * channel) for channel in mean)  # cut off and not rounded, as LLaVA does
        self.look = Look(image_size, config.aspect, interpolation, (red, green, blue))
        template = template or find(config.template, config.system)
        self.writing = Writing(template, tokenizer, tokens_per_image, config.max_length, instruction_tokenizer)
        found, facts = locate(config)
        self._samples = Parts({part: samples for part, samples in found.items() if parts is None or part in parts})
        self.provenance: dict[str, Any] = facts | {
            "task": config.task,
            "counts": {part: len(samples) for part, samples in self._samples.items()},
            **self.preparation,
            "skipped": 0,
        }
        self._pictures: Pictures | None = None
        self._lengths: dict[str, np.ndarray] = {}
        self._cut: dict[str, tuple[int, int]] = {}
        self._rows: list[list[int]] | None = None
        self._start = (0, 0)

    @property
    def preparation(self) -> dict[str, Any]:
        """How a sample becomes one of a batch."""
        config, look, template = self.config, self.look, self.writing.template
        return {
            "image_size": list(look.size),
            "aspect": look.aspect,
            "interpolation": look.interpolation,
            "fill": list(look.fill),
            "template": config.template,
            "template_fields": vars(template) if isinstance(template, Template) else None,
            "system": config.system,
            "question": config.question,
            "max_length": config.max_length,
            "packed": config.pack,
        }

    @property
    def pictures(self) -> Pictures:
        """The images of all parts, each once."""
        self.setup()
        assert self._pictures is not None
        return self._pictures

    def samples(self, part: str) -> Shelf:
        """The samples of a part, those with unreadable images left out."""
        self.setup()
        return self._samples[part]

    def lengths(self, part: str) -> np.ndarray:
        """Tokens of every sample of a part, those of its images among them."""
        if part not in self._lengths:
            samples = self.samples(part)
            found = [(len(one), one.cut) for one in self.writing.encode_all(samples)]
            self._lengths[part], cut = np.array(found, np.int64).reshape(-1, 2).T
            self._cut[part] = int((cut > 0).sum()), int(cut.sum())
        return self._lengths[part]

    @property
    def skipped(self) -> int:
        """Images that could not be read so far, in all loader processes."""
        return int(self.pictures.failed.sum())

    def setup(self, stage: str | None = None) -> None:
        """Decode or look for the images, and write every sample once."""
        if self._pictures is not None:
            return
        # Every process of this machine keeps its own copy.
        limit = memory_limit() // (self.trainer.num_devices if self.trainer else 1)
        images = (image for samples in self._samples.values() for sample in samples for image in sample.images)
        self._pictures = Pictures(images, self.look, self.config.on_missing == "skip", limit)
        self._samples.leave_out(self._pictures)
        self._count()
        for reason in self._pictures.reasons:
            warnings.warn(f"Left out: {reason}", stacklevel=2)
        if cut := [f"{count} of {part} ({tokens} tokens)" for part, (count, tokens) in self._cut.items() if count]:
            warnings.warn(
                f"Samples longer than data.max_length {self.config.max_length} lose their last words: "
                f"{', '.join(cut)}.",
                stacklevel=2,
            )

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches, packed or grouped as configured, padded on the right."""
        samples, config = self.samples("train"), self.config
        rank, world = self._process()
        rows = self._packed_rows() if config.pack else None
        changes = changes_of(config, self.look, self.seed)
        batches = Batches(samples, self.pictures, self.writing, rows, by_index=self.by_index, changes=changes)
        if config.group_by_length:
            lengths = self.lengths("train").tolist()
            with_images = [bool(sample.images) for sample in samples]
            sampler = GroupedSampler(lengths, with_images, config.batch_size, self.seed, rank, world, self._start)
        else:
            sampler = EpochSampler(len(batches), config.batch_size, self.seed, True, False, rank, world, self._start)
        return make_loader(batches, sampler, config.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """Training sequences of val in their order, or no loader where there are none."""
        return self.loader("val") if len(self._samples["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """Training sequences of test in their order, or no loader where there are none."""
        return self.loader("test") if len(self._samples["test"]) else []

    def loader(self, part: str, prompts: bool = False) -> DataLoader[dict[str, Tensor]]:
        """A part in its order, not packed, with `index`.

        Args:
            part: Of the set.
            prompts: What answers are generated from, padded on the left, instead of training sequences.
        """
        batches = Batches(self.samples(part), self.pictures, self.writing, None, prompts, self.by_index)
        rank, world = self._process()
        sampler = EpochSampler(len(batches), self.config.eval_batch_size, self.seed, False, False, rank, world)
        return make_loader(batches, sampler, self.config.workers)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that a run resumed from here goes on with, and which samples it has."""
        return reached(self.trainer, self._start) | {"samples": self._samples.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next `train_dataloader` begin there, with the samples that there were.

        Raises:
            ValueError: The samples are others.
        """
        self.setup()
        self._start = (state_dict["epoch"], state_dict["batch"])
        self._samples.load_state_dict(state_dict["samples"])
        self._rows = None
        self._lengths.clear()
        self._count()

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _packed_rows(self) -> list[list[int]]:
        if self._rows is None:
            lengths, capacity = self.lengths("train"), self.config.max_length
            self._rows = first_fit(lengths.tolist(), capacity, self.seed)
            self.provenance["rows"] = len(self._rows)
            self.provenance["filled"] = round(float(lengths.sum()) / (capacity * len(self._rows)), 4)
        return self._rows

    def _count(self) -> None:
        self.provenance["counts"] = {part: len(samples) for part, samples in self._samples.items()}
        self.provenance["skipped"] = self._samples.skipped
        self.provenance["images"] = len(self.pictures)
        self.provenance["tokens"] = {part: int(self.lengths(part).sum()) for part in self._samples}
        self.provenance["cut"] = {part: self._cut[part][0] for part in self._samples}
