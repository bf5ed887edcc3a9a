"""From conversations to token ids: where images go, what is trained, what does not fit.

Shapes: L positions of a sequence.

Image positions carry id 0 and their mask: no vocabulary grows, and the model puts image tokens there. Special tokens
come in by id only. In texts they are tokenised as the characters they are written with, so no sample can end a turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllm.sample import MARKER, Sample, Source, Turn, check
from mllm.segments import Segment
from mllm.templates import AnyTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "Encoded", "Sample", "Segment", "Turn", "encode", "encode_all", "prompt"]

_AT_ONCE = 1000
IGNORED = -100  # cross-entropy's own, of positions that are not trained


@dataclass(frozen=True)
class Encoded:
    """One sequence.

    Args:
        ids: [L] long, 0 at images.
        labels: [L] long, the ids where they are trained, else -100.
        image_mask: [L] bool, positions of image tokens.
        time: [L] long, images begun up to and including a position.
        images: In the order of their places.
        instructions: For each image, the text of the turn it was given with.
        where: Names the sample in messages.
        cut: Tokens that were cut off behind its end.
    """

    ids: Tensor
    labels: Tensor
    image_mask: Tensor
    time: Tensor
    images: tuple[Source, ...]
    instructions: tuple[str, ...]
    where: str
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    sample: Sample,
    template: AnyTemplate,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_image: int,
    max_length: int,
) -> Encoded:
    """A training sequence; text beyond `max_length` is cut off, images never are.

    Args:
        sample: With an answer at its end.
        template: How the conversation is written.
        tokenizer: Of the language model.
        tokens_per_image: Positions that an image takes, `tokens` of the connector.
        max_length: Longest sequence.

    Raises:
        ValueError: The sample has a fault, an image does not fit, or no answer is left within `max_length`; names file
            and id.
    """
    check(sample)
    segments = _segments(sample, template, tokenizer)
    return _fitted(_assembled(sample, segments, tokens_per_image, partial(_tokenised, tokenizer)), max_length)


def encode_all(
    samples: Iterable[Sample],
    template: AnyTemplate,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_image: int,
    max_length: int,
) -> Iterator[Encoded]:
    """As `encode`, of many samples, whose texts are tokenised a thousand samples at a time on all cores."""
    remaining = iter(samples)
    while some := list(islice(remaining, _AT_ONCE)):
        for sample in some:
            check(sample)
        written = [_segments(sample, template, tokenizer) for sample in some]
        texts = list({segment.text: None for segments in written for segment in segments if segment.is_text})
        ids = dict(zip(texts, _ids(tokenizer, texts), strict=True))
        for sample, segments in zip(some, written, strict=True):
            yield _fitted(_assembled(sample, segments, tokens_per_image, ids.__getitem__), max_length)


def _fitted(whole: Encoded, max_length: int) -> Encoded:
    """The sequence, its text cut off behind `max_length`."""
    if len(whole) <= max_length:
        return whole
    tokens_per_image = int(whole.image_mask.sum()) // max(1, len(whole.images))
    inside = int(whole.image_mask[:max_length].sum())
    late = int(whole.time[:max_length].amax()) < len(whole.images)
    if inside < int(whole.image_mask.sum()) or late:
        place = inside // tokens_per_image + 1 if tokens_per_image else int(whole.time[max_length - 1]) + 1
        raise ValueError(
            f"{whole.where}: image {place} of {len(whole.images)} would end behind position {max_length}, "
            "data.max_length, and images are not cut; raise data.max_length, use a connector with fewer tokens than "
            f"{tokens_per_image}, or shorten the text before it."
        )
    cut = replace(
        whole,
        ids=whole.ids[:max_length],
        labels=whole.labels[:max_length],
        image_mask=whole.image_mask[:max_length],
        time=whole.time[:max_length],
        cut=len(whole) - max_length,
    )
    if bool((cut.labels == IGNORED).all()):
        raise ValueError(
            f"{whole.where} has {len(whole)} tokens, and its first answer begins behind position {max_length}, "
            "data.max_length; raise it, or shorten the question."
        )
    return cut


def prompt(
    sample: Sample,
    template: AnyTemplate,
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_image: int,
    max_length: int | None = None,
) -> Encoded:
    """What an answer is generated from: token for token the beginning of the training sequence, nothing trained.

    Args:
        sample: An answer at its end is left out.
        template, tokenizer, tokens_per_image: As in `encode`.
        max_length: The longest prompt, for none is cut; None takes any.

    Raises:
        ValueError: The sample has a fault or is too long; names file and id.
    """
    if sample.turns and sample.turns[-1].role == "assistant":
        sample = replace(sample, turns=sample.turns[:-1])
    check(sample, answered=False)
    segments = _segments(sample, template, tokenizer)
    whole = _assembled(sample, segments, tokens_per_image, partial(_tokenised, tokenizer))
    if max_length is not None and len(whole) > max_length:
        raise ValueError(
            f"{sample.where}: the prompt has {len(whole)} tokens, and {max_length} are allowed; shorten the "
            "conversation or raise data.max_length."
        )
    return replace(whole, labels=torch.full_like(whole.labels, IGNORED))


def _segments(sample: Sample, template: AnyTemplate, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    try:
        return template.segments(sample.turns, tokenizer)
    except ValueError as error:
        raise ValueError(f"{sample.where}: {error}") from error


def _assembled(
    sample: Sample, segments: Iterable[Segment], tokens_per_image: int, ids_of: Callable[[str], Sequence[int]]
) -> Encoded:
    ids: list[int] = []
    labels: list[int] = []
    time: list[int] = []
    mask: list[bool] = []
    seen = 0
    for segment in segments:
        new: Sequence[int]
        if segment.image:
            seen += 1
            new = (0,) * tokens_per_image
        elif segment.token is not None:
            new = (segment.token,)
        else:
            new = ids_of(segment.text)
        ids += new
        labels += new if segment.trained else (IGNORED,) * len(new)
        time += [seen] * len(new)
        mask += [segment.image] * len(new)
    return Encoded(
        ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        image_mask=torch.tensor(mask, dtype=torch.bool),
        time=torch.tensor(time, dtype=torch.int64),
        images=sample.images,
        instructions=tuple(_instructions(sample)),
        where=sample.where,
    )


# Cues, system texts and the questions of a VQA set come again and again.
@functools.lru_cache(maxsize=4096)
def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> Sequence[int]:
    return _ids(tokenizer, [text])[0]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # Not verbose: the length is compared with data.max_length here, and not with what the tokenizer was saved with.
    return (
        tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids if texts else []
    )


def _instructions(sample: Sample) -> list[str]:
    questions = [turn.text for turn in sample.turns if turn.role == "user"]
    return [text.replace(MARKER, "").strip() for text in questions for _ in range(text.count(MARKER))]
