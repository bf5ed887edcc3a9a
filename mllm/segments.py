"""The parts that a template makes of a conversation.

Each is tokenised on its own and the ids are concatenated, so the prompt of inference is, token for token, the beginning
of the training sequence: nothing is tokenised in two contexts, and no lengths are guessed. Neighbouring texts that are
both trained, or both not, are one segment, so that words meet the tokenizer as in running text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mllm.sample import MARKER, Turn


@dataclass(frozen=True)
class Segment:
    """A part of a sequence: text, one token, or an image.

    Args:
        text: Tokenised on its own.
        trained: Whether its tokens are labels.
        token: An id that takes the place of text.
        image: An image takes the place of text.
    """

    text: str = ""
    trained: bool = False
    token: int | None = None
    image: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it is neither a token nor an image."""
        return self.token is None and not self.image


def joined(parts: Iterable[Segment]) -> list[Segment]:
    """Neighbouring texts that are both trained, or both not, as one; empty ones left out."""
    found: list[Segment] = []
    for part in parts:
        if part.is_text and not part.text:
            continue
        if part.is_text and found and found[-1].is_text and found[-1].trained == part.trained:
            found[-1] = replace(part, text=found[-1].text + part.text)
        else:
            found.append(part)
    return found


def with_images(text: str) -> list[Segment]:
    """A text as segments, with images in the places of its markers."""
    first, *rest = (Segment(piece) for piece in text.split(MARKER))
    return [first, *(part for piece in rest for part in (Segment(image=True), piece))]


def one_in_front(text: str) -> str:
    """The text with its one image and a line break before it (LLaVA); a text with several images stays as it is."""
    return f"{MARKER}\n{text.replace(MARKER, '').strip()}".strip() if text.count(MARKER) == 1 else text


def filled(form: str, text: str) -> str:
    """`form` with the text in the place of {}."""
    return form.replace("{}", text, 1)  # not str.format: texts have braces of their own


def split_system(turns: Sequence[Turn], default: str) -> tuple[str, Sequence[Turn]]:
    """The system text of a conversation, or `default`, and the other turns."""
    return (turns[0].text, turns[1:]) if turns and turns[0].role == "system" else (default, turns)
