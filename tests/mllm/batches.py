"""Batches written by hand: a sample is a string of letters, `#` for an image, capitals for what is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm.collate import collate
from mllm.sequence import IGNORED, Encoded
from tests.mllm.languages import WORDS


def encoded(text: str, tokens: int) -> Encoded:
    """`ab#cD`: two words, an image of so many tokens, a word, and a word that is trained; `$` ends it."""
    ids, labels, image, time, begun = [], [], [], [], 0
    for letter in text:
        begun += letter == "#"
        count = tokens if letter == "#" else 1
        word = {"#": 0, "$": 2}.get(letter) if letter in "#$" else WORDS.index(letter.lower())
        ids += [word] * count
        labels += [word if letter.isupper() or letter == "$" else IGNORED] * count
        image += [letter == "#"] * count
        time += [begun] * count
    return Encoded(
        torch.tensor(ids),
        torch.tensor(labels),
        torch.tensor(image),
        torch.tensor(time),
        tuple(f"image{i}" for i in range(begun)),  # type: ignore[arg-type]
        ("",) * begun,
        text,
    )


def pictures(count: int, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def batch(
    *rows: str | Sequence[str], tokens: int = 16, side: str = "right", images: Tensor | None = None
) -> dict[str, Tensor]:
    """Rows of one sample each, or of several that are packed."""
    packed = any(not isinstance(row, str) for row in rows)
    made = [[encoded(text, tokens) for text in ([row] if isinstance(row, str) else row)] for row in rows]
    count = sum(len(one.images) for row in made for one in row)
    shown = pictures(count) if images is None else images
    found = collate(made, shown, tokens, side, packed)  # type: ignore[arg-type]
    # What a connector that reads text is asked about every image.
    found["text_ids"] = torch.arange(3, 5).repeat(count, 1)
    found["text_mask"] = torch.ones(count, 2, dtype=torch.long)
    return found
