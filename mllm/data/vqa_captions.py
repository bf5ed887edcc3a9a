"""The embedded set of captions: what easy-vqa's questions and answers say about each drawing, `a blue circle`.

An answer tells what is there ("blue"; "yes" to "is there a circle?") or what is not. Of 5,000 images 4,466 have one
colour and one shape left; the others are left out. There are 24 different captions, so one that is drawn at random fits
an image once in 24 times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mllm.data import vqa
from mllm.data.captions import captioned
from mllm.sample import Sample
from mllm.sample import Source as Image

NAME = "easyvqa_captions"
COLOURS = frozenset(("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"))
SHAPES = frozenset(("circle", "rectangle", "triangle"))
_NEGATED = {"no", "not"}


def read() -> dict[str, list[Sample]]:
    """The splits `train`, `val` and `test`, of the images that `mllm.data.vqa` has there.

    Raises:
        RuntimeError: The package cannot be fetched.
    """
    return {part: captions(samples) for part, samples in vqa.read().items()}


def captions(samples: Iterable[Sample]) -> list[Sample]:
    """A caption for each image about which the questions leave no doubt, in the order of the images."""
    left: dict[Image, tuple[set[str], set[str]]] = {}
    for sample in samples:
        question, answer = (set(re.findall(r"\w+", turn.text)) for turn in sample.turns)
        for known, possible in zip(left.setdefault(sample.images[0], (set(COLOURS), set(SHAPES))), _KINDS, strict=True):
            named = (question | answer) & possible
            if not named:
                continue
            denied = bool(question & _NEGATED) if "yes" in answer else "no" in answer and not question & _NEGATED
            if denied:
                known -= named
            else:
                known &= named
    found = []
    for image, (colours, shapes) in left.items():
        if len(colours) == len(shapes) == 1:
            text = f"a {min(colours)} {min(shapes)}"
            found.append(captioned(image.name, (image,), text, "", vqa.PACKAGE))  # type: ignore[union-attr]
    return found


_KINDS = (COLOURS, SHAPES)
