"""The tokenizer's own chat template as segments.

It is rendered once for a sequence of roles, with sentinels where the texts go, and split at them. What it writes before
an answer is the cue; an answer ends with the first special token behind it, which is trained.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mllm.sample import Turn
from mllm.segments import Segment, joined, one_in_front, split_system, with_images

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatTemplate:
    """`data.template: chat`.

    Args:
        image_position: `inline` or `turn`, as in templates.yaml.
        system: System text; None leaves it to the chat template.
    """

    image_position: Literal["inline", "turn"] = "inline"
    system: str | None = None

    def segments(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
        """A conversation as segments; after a last question they end with the cue.

        Raises:
            ValueError: The tokenizer has no chat template, or one that refuses the conversation, hides a text or ends
                answers with no special token.
        """
        system, turns = split_system(turns, self.system or "")
        turns = [Turn("system", system), *turns] if system else list(turns)
        *between, tail = _fixed_parts(tokenizer, tuple(turn.role for turn in turns))
        parts: list[Segment] = []
        for before, turn in zip(between, turns, strict=True):
            answer = turn.role == "assistant"
            text = one_in_front(turn.text) if self.image_position == "turn" and not answer else turn.text
            parts += [*before, *([Segment(text, trained=True)] if answer else with_images(text))]
        return _with_spaces_moved(joined([*parts, *tail]))

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The token that closes an answer.

        Raises:
            ValueError: As `segments`.
        """
        tail = _fixed_parts(tokenizer, ("user", "assistant"))[-1]
        return next(part.token for part in reversed(tail) if part.token is not None)


@functools.lru_cache(maxsize=256)
def _fixed_parts(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]) -> list[list[Segment]]:
    """What stands before each text and behind the last: up to the end of an answer, or the cue after a question."""
    # For a question without an answer, an answer's place shows the cue as training sees it.
    pieces = _rendered(tokenizer, (*roles, "assistant") if roles[-1] == "user" else roles)
    parts = [_tokens_by_id(piece, tokenizer) for piece in pieces[: len(roles) + 1]]
    for i, role in enumerate(roles, start=1):
        if role == "assistant":
            end = next((k for k, part in enumerate(parts[i]) if part.token is not None), None)
            if end is None:
                raise ValueError(
                    f"The chat template of the tokenizer {_name(tokenizer)} ends an answer with {pieces[i]!r}, which "
                    "has no special token that generation could stop at; choose another data.template."
                )
            parts[i] = [replace(part, trained=k <= end) for k, part in enumerate(parts[i])]
            if i == len(roles):  # nothing is learned behind the last answer's end
                parts[i] = parts[i][: end + 1]
    return parts


def _rendered(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]) -> list[str]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {_name(tokenizer)} has no chat template; choose a data.template of mllm/templates.yaml."
        )
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]  # of a private area: in no text, and no filter trims them
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, ValueError) as error:
        raise ValueError(
            f"The chat template of the tokenizer {_name(tokenizer)} refuses turns of {', '.join(roles)}: {error}. "
            "Change the conversation or data.system, or choose another data.template."
        ) from error
    pieces = re.split("\ue000(\\d+)\ue001", rendered)
    if pieces[1::2] != [str(i) for i in range(len(roles))]:
        raise ValueError(
            f"The chat template of the tokenizer {_name(tokenizer)} does not write every text once and in order, so "
            "the answers cannot be found in what it writes; choose another data.template."
        )
    return pieces[0::2]


def _tokens_by_id(text: str, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    special = {token.content: (i, token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not special:
        return [Segment(text)]
    pattern = "|".join(re.escape(word) for word in sorted(special, key=len, reverse=True))
    parts: list[Segment] = []
    strip = False
    for i, piece in enumerate(re.split(f"({pattern})", text)):
        if i % 2 == 0:
            parts.append(Segment(piece.lstrip() if strip else piece))
            continue
        number, token = special[piece]
        if token.lstrip:
            parts[-1] = replace(parts[-1], text=parts[-1].text.rstrip())
        parts.append(Segment(token=number))
        strip = token.rstrip
    return parts


def _with_spaces_moved(parts: list[Segment]) -> list[Segment]:
    # Tokenizers write a space at the front of a word, so one before an answer belongs to it and not to the cue.
    moved = [*parts, Segment(trained=True)]
    for i, part in enumerate(parts):
        stripped = part.text.rstrip(" ")
        if not part.trained and stripped != part.text and moved[i + 1].trained:
            moved[i] = replace(part, text=stripped)
            moved[i + 1] = replace(moved[i + 1], text=part.text[len(stripped) :] + moved[i + 1].text)
    return joined(moved[:-1])


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__
