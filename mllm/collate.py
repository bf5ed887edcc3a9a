"""Sequences -> the tensors of a batch.

Shapes: B rows, L positions, I images of the whole batch, T positions of an instruction, H W pixels.

Padding has id 0, attention 0 and no label, as image positions have id 0: the pad token of the tokenizer is never used,
so a tokenizer without one needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mllm.sequence import IGNORED, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["right", "left"]
# InstructBLIP's longest instruction, in tokens.
_INSTRUCTION = 128


def collate(
    rows: Sequence[Sequence[Encoded]],
    images: Tensor,
    tokens_per_image: int,
    padding_side: Side,
    packed: bool = False,
) -> dict[str, Tensor]:
    """Put sequences into rows of one length.

    Args:
        rows: B rows, one sequence each unless they are `packed`.
        images: uint8 [I, 3, H, W], or long [I], positions of images whose features are known; in the order of the
            sequences.
        tokens_per_image: Positions of an image.
        padding_side: `right` in training, `left` in generation.
        packed: Say with `segments` which sequence of its row a position belongs to.

    Returns:
        input_ids, attention_mask, position_ids, labels, time [B, L] long, image_mask [B, L] bool, image_row [I] long,
        `images` or `image_index`, and if packed segments [B, L] long, from 1 and 0 at padding. Positions start at 0 in
        every sequence.

    Raises:
        ValueError: A sequence has another number of image positions than its images need, or there are more or fewer
            images than the sequences have places for.
    """
    sequences = [sequence for row in rows for sequence in row]
    for one in sequences:
        places = int(one.image_mask.sum())
        if places != len(one.images) * tokens_per_image:
            raise ValueError(
                f"{one.where} has {places} image positions, and {len(one.images)} images of {tokens_per_image} tokens "
                "need another number; encode it with the tokens of this connector."
            )
    count = sum(len(one.images) for one in sequences)
    if len(images) != count:
        raise ValueError(
            f"A batch of {len(sequences)} samples from {sequences[0].where} on has places for {count} images and "
            f"{len(images)} are given; give each sample's images, in its order."
        )
    length = max(sum(len(one) for one in row) for row in rows)

    def filled(values: list[list[Tensor]], padding: int | bool = 0) -> Tensor:
        lines = [torch.cat(row) for row in values]
        whole = lines[0].new_full((len(rows), length), padding)
        for line, to in zip(lines, whole, strict=True):
            start = length - len(line) if padding_side == "left" else 0
            to[start : start + len(line)] = line
        return whole

    batch = {
        "input_ids": filled([[one.ids for one in row] for row in rows]),
        "attention_mask": filled([[torch.ones_like(one.ids) for one in row] for row in rows]),
        "position_ids": filled([[torch.arange(len(one)) for one in row] for row in rows]),
        "labels": filled([[one.labels for one in row] for row in rows], IGNORED),
        "time": filled([[one.time for one in row] for row in rows]),
        "image_mask": filled([[one.image_mask for one in row] for row in rows], False),
        "image_row": torch.tensor(
            [i for i, row in enumerate(rows) for one in row for _ in one.images], dtype=torch.int64
        ),
        "images" if images.ndim == 4 else "image_index": images,
    }
    if packed:
        batch["segments"] = filled(
            [[torch.full_like(one.ids, number) for number, one in enumerate(row, start=1)] for row in rows]
        )
    return batch


def instructions(
    rows: Sequence[Sequence[Encoded]], tokenizer: PreTrainedTokenizerBase, max_length: int = _INSTRUCTION
) -> dict[str, Tensor]:
    """What a connector reads that looks at images with a question in mind (InstructBLIP).

    Args:
        rows: As in `collate`.
        tokenizer: Of the connector.
        max_length: Tokens after which an instruction is cut off.

    Returns:
        text_ids and text_mask [I, T] long, padded on the right with 0; T is at least 1.
    """
    texts = [text for row in rows for one in row for text in one.instructions]
    ids = [tokenizer(text, truncation=True, max_length=max_length).input_ids for text in texts]
    longest = max((len(one) for one in ids), default=0) or 1
    text_ids, text_mask = (torch.zeros((len(ids), longest), dtype=torch.int64) for _ in range(2))
    for i, one in enumerate(ids):
        text_ids[i, : len(one)], text_mask[i, : len(one)] = torch.tensor(one, dtype=torch.int64), 1
    return {"text_ids": text_ids, "text_mask": text_mask}
