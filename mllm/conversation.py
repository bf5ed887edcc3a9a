"""A conversation with a model, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mllm.collate import collate, instructions
from mllm.data.batches import Writing
from mllm.data.images import Look, read
from mllm.generate import Decoding, stream
from mllm.sample import MARKER, Sample, Source, Turn
from mllm.vlm import VLM


class Conversation:
    """Questions and answers; each answer is generated from all that was said before, written as training writes it.

    Args:
        model: Answers.
        writing: How a conversation becomes a sequence.
        look: How an image becomes pixels.
        decoding: How words are chosen; None is greedy.

    `turns` and `images` hold what has been said and shown; emptying both begins anew.
    """

    def __init__(self, model: VLM, writing: Writing, look: Look, decoding: Decoding | None = None) -> None:
        self.model, self.writing, self.look, self.decoding = model, writing, look, decoding or Decoding()
        self.turns: list[Turn] = []
        self.images: list[Source] = []

    def ask(self, text: str, images: Sequence[Source] = ()) -> Iterator[str]:
        """The answer, piece by piece. Once it is complete, and not empty, both are part of the conversation.

        Args:
            text: The question. Images stand where it says `<image>`, or before it.
            images: New ones.

        Raises:
            ValueError: Another number of markers than of images, or the conversation is longer than it may be.
            UnreadableImage: An image cannot be read.
        """
        if MARKER not in text:
            text = f"{MARKER}\n" * len(images) + text
        turns, shown = [*self.turns, Turn("user", text)], [*self.images, *images]
        encoded = self.writing.prompt(Sample("conversation", tuple(shown), tuple(turns)))
        pixels = [self.look(read(source)) for source in shown]
        blank = torch.zeros(0, 3, *self.look.size, dtype=torch.uint8)
        batch = collate(
            [[encoded]], torch.stack(pixels) if pixels else blank, self.writing.tokens_per_image, padding_side="left"
        )
        if self.writing.instruction_tokenizer is not None:
            batch |= instructions([[encoded]], self.writing.instruction_tokenizer)
        device = self.model.mean.device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        said = ""
        stops = [self.writing.template.stop(self.writing.tokenizer)]
        for piece in stream(self.model, batch, self.decoding, stops):
            said += piece
            yield piece
        if said.strip():
            self.turns, self.images = [*turns, Turn("assistant", said.strip())], shown
