"""A conversation about images, and what must hold for one to be learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]
MARKER = "<image>"
_NEXT = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True)
class Stored:
    """The bytes of an image inside another file, such as a shard."""

    name: str
    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Held:
    """An image in memory, as the bytes of its file."""

    name: str
    data: bytes = field(repr=False)


Source = Path | Stored | Held


@dataclass(frozen=True)
class Turn:
    """What one side says; `<image>` in a user's text is the place of an image."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation.

    Args:
        id: Names it in messages.
        images: In the order of the markers.
        turns: A system text or none, then user and assistant in turn.
        file: Where it was read, for messages.
        answers: Of several humans, that a generated answer is scored against; none is the last turn alone.
    """

    id: str
    images: tuple[Source, ...]
    turns: tuple[Turn, ...]
    file: str = ""
    answers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """File and id, as the beginning of a message."""
        return f"{self.file}: sample '{self.id}'" if self.file else f"sample '{self.id}'"


def faults(sample: Sample, answered: bool = True) -> Iterator[tuple[str, str]]:
    """What keeps a sample from being used: a word for the kind, and the end of a sentence.

    Args:
        sample: To look at.
        answered: Whether it must end with an answer, as in training; a question is expected to be last otherwise.
    """
    turns = sample.turns[1:] if sample.turns and sample.turns[0].role == "system" else sample.turns
    if not turns:
        yield "no_turns", "has no turns; it needs a question and its answer"
        return
    if turns[0].role == "assistant":
        yield "assistant_first", "starts with the assistant; a conversation starts with the user"
    for number, (before, turn) in enumerate(pairwise(turns), start=2):
        if turn.role != _NEXT.get(before.role):
            yield "order", f"has {before.role} and {turn.role} at turns {number - 1} and {number}; the two alternate"
            break
    for number, turn in enumerate(turns, start=1):
        if not turn.text.strip():
            yield "empty_turn", f"has an empty turn, number {number}, of the {turn.role}"
    for turn in sample.turns:
        if turn.role != "user" and MARKER in turn.text:
            yield "marker_in_answer", f"has {MARKER} in a text of the {turn.role}; images belong into those of the user"
    markers = sum(turn.text.count(MARKER) for turn in turns if turn.role == "user")
    if markers != len(sample.images):
        yield "markers", f"has {markers} times {MARKER} and {_count(len(sample.images), 'image')}; each needs the other"
    if answered and turns[-1].role == "user":
        yield "no_answer", "ends with a question, which nothing is learned from"


def check(sample: Sample, answered: bool = True) -> None:
    """Refuse a sample with a fault.

    Raises:
        ValueError: Names file, id and the first fault.
    """
    for _, sentence in faults(sample, answered):
        how = "Correct it; data_prep/llava.py finds and repairs all such samples." if sample.file else "Correct it."
        raise ValueError(f"{sample.where} {sentence}. {how}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
