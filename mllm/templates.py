"""Conversation templates: data in templates.yaml, or the tokenizer's own chat template (mllm.chat_template)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mllm.chat_template import ChatTemplate
from mllm.sample import MARKER, Turn
from mllm.segments import Segment, filled, joined, one_in_front, split_system, with_images
from vpeft.nearest import did_you_mean
from vpeft.yaml_file import read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = Path(__file__).with_suffix(".yaml")
CHAT = "chat"
ImagePosition = Literal["before_bos", "after_bos", "before_turn", "turn", "inline"]


@dataclass(frozen=True)
class Template:
    """One entry of templates.yaml, whose header says what the fields are."""

    name: str
    source: str
    image_position: ImagePosition
    bos: bool
    system: str
    begin: str
    user: str
    cue: str
    answer: str
    end: str
    rounds: int | None = None

    def segments(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
        """A conversation as segments; after a last question they end with the cue.

        Raises:
            ValueError: The tokenizer lacks what the template ends answers with, or there are too many rounds.
        """
        system, turns = split_system(turns, self.system)
        questions = [turn.text for turn in turns if turn.role == "user"]
        if self.rounds is not None and len(questions) > self.rounds:
            raise ValueError(
                f"The template {self.name} writes {self.rounds} question and answer, and there are {len(questions)} "
                "questions; choose another data.template."
            )
        images = [Segment(image=True)] * sum(text.count(MARKER) for text in questions)
        start = [Segment(token=token) for token in (opening(tokenizer) if self.bos else ())]
        parts = {"before_bos": images + start, "after_bos": start + images}.get(self.image_position, start)
        if system:
            parts = [*parts, Segment(filled(self.begin, system))]
        for turn in turns:
            if turn.role == "user":
                parts = [*parts, *with_images(self._asked(turn.text)), Segment(self.cue)]
            else:
                answer = Segment(filled(self.answer, turn.text), trained=True)
                parts = [*parts, answer, Segment(token=self.stop(tokenizer), trained=True)]
        return joined(parts)

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The token that closes an answer.

        Raises:
            ValueError: The tokenizer has none.
        """
        return _stop(tokenizer, self.name, self.end)

    def _asked(self, text: str) -> str:
        rest = text.replace(MARKER, "").strip()
        if self.image_position == "before_turn":
            return MARKER * text.count(MARKER) + filled(self.user, rest)
        if self.image_position in ("before_bos", "after_bos"):
            return filled(self.user, rest)
        return filled(self.user, one_in_front(text) if self.image_position == "turn" else text)


AnyTemplate = Template | ChatTemplate


def find(name: str, system: str | None = None) -> AnyTemplate:
    """A template by its name, `chat`, or the path of a YAML file with one entry.

    Args:
        name: As in `data.template`.
        system: A system text in place of the template's own; "" for none.

    Raises:
        ValueError: There is no such template, or a file's entry is not one.
    """
    if name == CHAT:
        return ChatTemplate(system=system)
    file = Path(name) if name.endswith((".yaml", ".yml")) else FILE
    entries = read_yaml(file)
    if file != FILE:
        if len(entries) != 1:
            raise ValueError(f"{file}: a file of one's own has one template, and this one has {len(entries)}.")
        name = next(iter(entries))
    elif name not in entries:
        raise ValueError(f"data.template '{name}' is not known; {did_you_mean(name, [*entries, CHAT])}")
    template = _template(file, name, entries[name])
    return template if system is None else replace(template, system=system)


def restored(saved: Mapping[str, Any], file: Path, system: str | None = None) -> AnyTemplate:
    """The template that an adapter was trained with, wherever it came from.

    Args:
        saved: `preparation` of its manifest: `template`, `system`, and the fields of one that is no tokenizer's own.
        file: The adapter, for messages.
        system: A system text in place of the one it was trained with; "" for none.

    Raises:
        ValueError: The fields are no template.
    """
    fields = saved.get("template_fields")
    texts = [saved.get("template"), *filter(None, [saved.get("system")])]
    if not all(isinstance(text, str) for text in texts) or not isinstance(fields, Mapping | None):
        raise ValueError(f"{file}: its manifest says no template that there is; copy or make the adapter again.")
    system = saved.get("system") if system is None else system
    if fields is None:
        return find(saved["template"], system)
    entry = {key: value for key, value in fields.items() if key != "name"}
    template = _template(file, str(fields.get("name")), entry)
    return template if system is None else replace(template, system=system)


@functools.lru_cache(maxsize=8)
def opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself begins a text with: BOS, [CLS] or nothing, whatever its `bos_token` is."""
    with_special: list[int] = tokenizer("a").input_ids
    plain: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    places = range(len(with_special) - len(plain) + 1)
    start = next((i for i in places if with_special[i : i + len(plain)] == plain), 0)
    return tuple(with_special[:start])


@functools.lru_cache(maxsize=8)
def _stop(tokenizer: PreTrainedTokenizerBase, template: str, end: str) -> int:
    if end == "eos":
        found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    else:
        # SentencePiece may put a space before a text; the last token is the text itself.
        found = next(reversed(tokenizer(end, add_special_tokens=False).input_ids), None)
        found = None if found == tokenizer.unk_token_id else found
    if not isinstance(found, int):
        what = "the end-of-sequence token" if end == "eos" else f"{end!r}"
        raise ValueError(
            f"The template {template} ends an answer with {what}, which the tokenizer "
            f"{tokenizer.name_or_path or type(tokenizer).__name__} has no token for; choose another data.template."
        )
    return found


def _template(file: Path, name: str, entry: Any) -> Template:
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: the template '{name}' is not a mapping; {FILE} shows its fields.")
    known = [field.name for field in fields(Template) if field.name != "name"]
    for key in entry:
        if key not in known:
            raise ValueError(f"{file}: the template '{name}' has no '{key}'; {did_you_mean(str(key), known)}")
    for key in known:
        kinds = {"bos": bool, "rounds": (int, type(None))}.get(key, str)
        if not isinstance(entry.get(key), kinds):
            raise ValueError(f"{file}: the template '{name}' needs '{key}' as in {FILE}; it has {entry.get(key)!r}.")
    if entry["image_position"] not in get_args(ImagePosition):
        choices = ", ".join(get_args(ImagePosition))
        raise ValueError(f"{file}: image_position of '{name}' is one of {choices}, not '{entry['image_position']}'.")
    if "{}" not in entry["answer"] or "{}" not in entry["begin"]:
        raise ValueError(f"{file}: answer and begin of '{name}' must have {{}} where the text goes.")
    return Template(name=name, **entry)
