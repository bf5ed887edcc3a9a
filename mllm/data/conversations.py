"""LLaVA's conversations: a JSON list, or one object a line.

    {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhy?"}, {"from": "gpt", ...}]}

`image` is a path below the folder of images, a list of such, or missing where a conversation has none. An optional
`answers` holds what several humans answer to the last question, as texts or in VQAv2's form, {"answer": "red"}; a
generated answer is scored against them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm.sample import Role, Sample, Turn, check
from vpeft.fetch import stays_inside

ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


def read(records: Iterable[Any], file: Path, root: Path) -> Iterator[Sample]:
    """The conversations of a file.

    Args:
        records: Its content, as `load_records` reads it.
        file: For messages.
        root: Folder that the paths of images start from.

    Raises:
        ValueError: A record is no conversation or has a fault; names file and id.
    """
    for number, record in enumerate(records, start=1):
        sample = to_sample(record, f"number {number}", root, str(file))
        check(sample)
        yield sample


def to_sample(record: Any, place: str, root: Path, file: str) -> Sample:
    """One record as a sample, whose faults are not looked at yet.

    Args:
        record: As json reads it.
        place: Stands for an id where the record has none.
        root: Folder that the paths of images start from.
        file: For messages.

    Raises:
        ValueError: It is no such record at all.
    """
    id = str(record.get("id", place)) if isinstance(record, Mapping) else place
    where = f"{file}: sample '{id}'"
    turns = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(turns, list):
        raise ValueError(
            f"{where} has no list 'conversations' of turns; write them as "
            "[{'from': 'human', 'value': ...}, {'from': 'gpt', 'value': ...}]."
        )
    images, spoken = image_paths(record, root, where), tuple(_turn(turn, where) for turn in turns)
    return Sample(id, images, spoken, file, _answers(record.get("answers", []), where))


def image_paths(record: Mapping[str, Any], root: Path, where: str) -> tuple[Path, ...]:
    """The files that `image` names.

    Raises:
        ValueError: It is neither a path nor a list of such, or leads out of the folder.
    """
    named = record.get("image") or []
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} has the image {name!r}; it is a path below {root}, or a list of such.")
        if not stays_inside(name):
            raise ValueError(f"{where} has the image '{name}', which leaves {root}; paths are relative to it.")
    return tuple(root / name for name in names)


def load_records(file: Path) -> list[Any]:
    """The objects of a JSON list, or of a file with one object a line.

    Raises:
        ValueError: The file is missing, or not JSON; says which line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read: {error.strerror}. Check the path, in a config data.root and data.files."
        ) from error
    if file.suffix.lower() == ".jsonl":
        return _lines(file, text)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line is called .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{file} is not JSON: {error.msg} at line {error.lineno}{hint}. Correct it.") from error
    except (RecursionError, ValueError) as error:  # the latter: a number of thousands of digits
        raise ValueError(f"{file} is nested too deep, or has endless numbers; correct it.") from error
    if not isinstance(records, list):
        raise ValueError(
            f"{file} holds a {type(records).__name__} and not a list of samples; write them between [ and ]."
        )
    return records


def _lines(file: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}, is not JSON: {error.msg}. Correct it.") from error
            except (RecursionError, ValueError) as error:
                said = f"{file}, line {number}, is nested too deep, or has endless numbers; correct it."
                raise ValueError(said) from error
    return found


def _answers(found: Any, where: str) -> tuple[str, ...]:
    listed = found if isinstance(found, list) else [found]
    texts: list[Any] = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where} has the answers {str(found)[:80]}; they are a list of texts, or of mappings with a text 'answer'."
        )
    return tuple(texts)


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping) or turn.get("from") not in list(ROLES) or not isinstance(turn.get("value"), str):
        raise ValueError(
            f"{where} has the turn {str(turn)[:80]}; a turn has 'from' ({', '.join(ROLES)}) and a text 'value'."
        )
    return Turn(ROLES[turn["from"]], turn["value"])
