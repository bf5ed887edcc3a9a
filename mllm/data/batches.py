"""Whole batches: samples are written, put into rows and given their images.

B rows, L positions, I images of a batch
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mllm.collate import collate, instructions
from mllm.data.changes import CropFlip
from mllm.data.images import Pictures
from mllm.data.shelf import Shelf
from mllm.sample import Sample
from mllm.sequence import IGNORED, Encoded, encode, encode_all, prompt
from mllm.templates import AnyTemplate
from vpeft.data.loader import Fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Writing:
    """How samples become sequences.

    Args:
        template: How a conversation is written.
        tokenizer: Of the language model.
        tokens_per_image: Positions of an image.
        max_length: Longest sequence.
        instruction_tokenizer: Of a connector that reads the question; None for others.
    """

    template: AnyTemplate
    tokenizer: PreTrainedTokenizerBase
    tokens_per_image: int
    max_length: int
    instruction_tokenizer: PreTrainedTokenizerBase | None = None

    def encode(self, sample: Sample) -> Encoded:
        """As `mllm.sequence.encode`."""
        return encode(sample, self.template, self.tokenizer, self.tokens_per_image, self.max_length)

    def encode_all(self, samples: Iterable[Sample]) -> Iterator[Encoded]:
        """As `mllm.sequence.encode_all`."""
        return encode_all(samples, self.template, self.tokenizer, self.tokens_per_image, self.max_length)

    def prompt(self, sample: Sample) -> Encoded:
        """As `mllm.sequence.prompt`."""
        return prompt(sample, self.template, self.tokenizer, self.tokens_per_image, self.max_length)


class Batches(Dataset[dict[str, Tensor]]):
    """The batch at (epoch, positions), as `mllm.collate` makes it, with `index`, the positions of all its samples.

    A sample whose image has failed keeps its place and its black image, and loses its labels: nothing is learned from
    it, and no other sample's place depends on which files can be read. Prompts, which have no labels, come with `lost`
    [B], bool.

    Args:
        samples: The split.
        pictures: Images of all splits.
        writing: How samples become sequences.
        rows: Positions of the samples of each packed row; None gives each sample a row.
        prompts: Serve what answers are generated from, padded on the left, instead of training sequences.
        by_index: Serve `image_index`, positions in `pictures`, instead of `images`.
        changes: What is done to every image.
    """

    def __init__(
        self,
        samples: Shelf,
        pictures: Pictures,
        writing: Writing,
        rows: Sequence[Sequence[int]] | None = None,
        prompts: bool = False,
        by_index: bool = False,
        changes: CropFlip | None = None,
    ) -> None:
        self.samples, self.pictures, self.writing = samples, pictures, writing
        self.rows, self.prompts, self.by_index, self.changes = rows, prompts, by_index, changes

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def __getitem__(self, fetch: Fetch) -> dict[str, Tensor]:
        epoch, positions = fetch
        chosen = [[position] if self.rows is None else self.rows[position] for position in positions]
        write = self.writing.prompt if self.prompts else self.writing.encode
        rows = [[write(self.samples[i]) for i in row] for row in chosen]
        where = [self.pictures.position(image) for row in rows for one in row for image in one.images]
        index = torch.tensor(where, dtype=torch.int64)
        failed_before = self.pictures.failed[index].clone()
        if self.by_index:
            images = index
        elif self.changes is None:
            images = self.pictures.take(index)
        else:
            shown = zip([i for row in chosen for i in row], [one for row in rows for one in row], strict=True)
            changes = [self.changes.at(epoch, i, k) for i, one in shown for k in range(len(one.images))]
            images = self.pictures.changed(where, changes)
        self._warn(index[self.pictures.failed[index] & ~failed_before])
        lost = torch.tensor([any(self._lost(one) for one in row) for row in rows])
        rows = [[self._without_labels(one) for one in row] for row in rows]
        side = "left" if self.prompts else "right"
        batch = collate(rows, images, self.writing.tokens_per_image, side, packed=self.rows is not None)
        batch["index"] = torch.tensor([i for row in chosen for i in row], dtype=torch.int64)
        if self.prompts:
            batch["lost"] = lost
        if self.writing.instruction_tokenizer is not None:
            batch |= instructions(rows, self.writing.instruction_tokenizer)
        return batch

    def _without_labels(self, one: Encoded) -> Encoded:
        return replace(one, labels=torch.full_like(one.labels, IGNORED)) if self._lost(one) else one

    def _lost(self, one: Encoded) -> bool:
        return any(bool(self.pictures.failed[self.pictures.position(image)]) for image in one.images)

    def _warn(self, lost: Tensor) -> None:
        for i in lost.tolist():
            warnings.warn(f"Left out: {self.pictures.sources[i]} was lost or damaged during the run.", stacklevel=2)
