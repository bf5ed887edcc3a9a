"""Answers: greedy, sampled or by beam search, through transformers' `generate` on merged sequences.

Shapes: B sequences, L positions of the longest prompt, P tokens of a prefix, d width of the language model.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.vlm import VLM, Batch


@dataclass(frozen=True)
class Decoding:
    """How words are chosen. Settings that a model brings along do not count.

    Args:
        max_new_tokens: Longest answer.
        beams: 1 is greedy, or sampling.
        length_penalty: Of beam search; above 0 favours long answers. -1 in BLIP-2's VQA.
        sample: Draw words instead of taking the likeliest.
        temperature: Of sampling.
        top_p: Draw from the likeliest words that together have this probability.
        stop: Texts that end an answer and are not part of it.
        seed: Of sampling.
    """

    max_new_tokens: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("beams", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"decoding: {name} is {getattr(self, name)}; give {least} or more.")
        if self.temperature <= 0:
            raise ValueError(f"decoding: temperature is {self.temperature}; give more than 0. Greedy is sample: false.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"decoding: top_p is {self.top_p}; give more than 0 and at most 1.")


def generate(
    model: VLM,
    batch: Batch,
    decoding: Decoding | None = None,
    ends: Sequence[int] = (),
    streamer: Any = None,
    criteria: Sequence[Any] = (),
) -> list[list[int]]:
    """The words of every answer, without what ended it.

    What a row is answered with does not depend on the other rows, unless it is sampled.

    Args:
        model: Is put into eval mode while it answers.
        batch: Prompts, padded on the left (`mllm.collate`).
        decoding: None is greedy.
        ends: Words that end an answer besides those of the tokenizer and the language model, as the template's stop.
        streamer: transformers', told of every word.
        criteria: transformers' stopping criteria, besides.

    Raises:
        ValueError: a prompt is padded on the right.
    """
    decoding = decoding or Decoding()
    mask = batch["attention_mask"]
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "The prompts are padded on the right, so that answers would begin behind the padding. Build the batch with "
            "padding_side left."
        )
    stops = sorted({*model.about.ends, *ends})
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), _seeded(decoding, mask.device):
            found = _generate(model, batch, decoding, stops, streamer, list(criteria))
    finally:
        model.train(was)
    return [_until(row, stops) for row in found.tolist()]


def answers(model: VLM, batch: Batch, decoding: Decoding | None = None, ends: Sequence[int] = ()) -> list[str]:
    """The texts of the answers, without special tokens, stop texts and space around them; arguments of `generate`."""
    decoding = decoding or Decoding()
    texts = model.about.tokenizer.batch_decode(generate(model, batch, decoding, ends), skip_special_tokens=True)
    return [_before(text, decoding.stop).strip() for text in texts]


def stream(model: VLM, batch: Batch, decoding: Decoding | None = None, ends: Sequence[int] = ()) -> Iterator[str]:
    """The answer to one prompt, piece by piece while it is generated; arguments of `generate`.

    Generation runs in a thread, which ends with the iterator.

    Raises:
        ValueError: several prompts, or beams, of which the best is only known at the end; and as `generate`.
    """
    from transformers import TextIteratorStreamer

    decoding = decoding or Decoding()
    if len(batch["input_ids"]) != 1 or decoding.beams != 1:
        raise ValueError(
            f"One answer at a time is streamed, without beams; {len(batch['input_ids'])} prompts and {decoding.beams} "
            "beams were given."
        )
    # transformers types its tokenizers too narrowly here.
    streamer = TextIteratorStreamer(model.about.tokenizer, skip_special_tokens=True)  # type: ignore[arg-type]
    left, failed = threading.Event(), []

    def run() -> None:
        try:
            generate(model, batch, decoding, ends, streamer, [_Left(left)])
        except BaseException as error:  # raised again where the answer is read
            failed.append(error)
            streamer.on_finalized_text("", stream_end=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from _until_stop(streamer, decoding.stop)
    finally:
        left.set()
        thread.join()
    if failed:
        raise failed[0]


def _generate(
    model: VLM, batch: Batch, decoding: Decoding, stops: list[int], streamer: Any, criteria: list[Any]
) -> Tensor:
    from transformers import GenerationConfig, StoppingCriteriaList

    embeds, mask, positions = model.merge(batch), batch["attention_mask"], batch["position_ids"]
    cache = model.caching(len(embeds) * decoding.beams)
    if cache is not None:
        front = cache.get_seq_length()  # generate() takes what the cache holds off the beginning of the prompts
        embeds = F.pad(embeds, (0, 0, front, 0))  # B P+L d
        mask = F.pad(mask, (front, 0), value=1)
        positions = F.pad(positions + front, (front, 0))
    settings: dict[str, Any] = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        do_sample=decoding.sample,
        repetition_penalty=1.0,
        eos_token_id=stops,
        pad_token_id=stops[0],
        use_cache=True,
        **(settings if decoding.sample else {}),
    )
    if decoding.stop:
        criteria = [*criteria, _Said(model.about.tokenizer, decoding.stop)]
    with model.autocast():
        return model.language.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList(criteria),
            streamer=streamer,
        )


class _Said:
    """Ends answers that hold a stop text; transformers' own criterion does not know tokenizers of whole words."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return torch.tensor([_before(text, self.stops) != text for text in texts], device=input_ids.device)


class _Left:
    """Ends generation once nobody reads what it says."""

    def __init__(self, left: threading.Event) -> None:
        self.left = left

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.left.is_set(), device=input_ids.device)


def _until(row: list[int], stops: Sequence[int]) -> list[int]:
    return row[: next((at for at, word in enumerate(row) if word in stops), len(row))]


def _before(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to a stop text; what may be the beginning of one is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        kept = _before(held, stops)
        if kept != held:
            held = kept
            break
        safe = len(held) - max((n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])), default=0)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


@contextlib.contextmanager
def _seeded(decoding: Decoding, device: torch.device) -> Iterator[None]:
    if not decoding.sample:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(decoding.seed)
        yield
