"""JSON that a command wrote for the next one: of the form that is needed, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

NUMBER = int | float


def read_json(path: Path, form: Any, advice: str) -> Any:
    """The content of a file.

    Args:
        path: The file.
        form: What `fits` takes.
        advice: What to do with a file of another form, to follow `is damaged:`.

    Raises:
        ValueError: It is no JSON, or of another form.
    """
    found = parsed(path.read_bytes(), form)
    if found is None:
        raise ValueError(f"{path} is damaged, or no file that a command of this project wrote: {advice}.")
    return found


def parsed(text: bytes, form: Any) -> Any:
    """The value of a JSON text; None where it is none, or does not fit the form."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair could be printed nowhere
    except (ValueError, RecursionError):  # UnicodeError is one of the former
        return None
    return found if fits(found, form) else None


def fits(value: Any, form: Any) -> bool:
    """Whether a value of JSON has a form.

    Args:
        value: Any.
        form: A type or a union of types (true and false are bool alone, no numbers); `[form]`, a list of such;
            `{"key": form, ...}`, a mapping that has these keys at least; `{str: form}`, one of any keys.
    """
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(one, form[0]) for one in value)
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return False
        if str in form:
            return all(fits(one, form[str]) for one in value.values())
        return all(key in value and fits(value[key], wanted) for key, wanted in form.items())
    kinds = form.__args__ if isinstance(form, UnionType) else (form,)
    return isinstance(value, form) and (not isinstance(value, bool) or bool in kinds or object in kinds)
