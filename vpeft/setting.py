"""One setting of a configuration: its dotted key, its type, and the sentence for a mistake in either."""

from __future__ import annotations

import argparse
import difflib
import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse

from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """A value and where it was given: a file, or 'command line'."""

    value: Any
    source: str


@functools.cache
def schema(kind: type) -> dict[str, Any]:
    """The type of every setting of a kind of run, by dotted key."""
    return dict(_typed(kind))


def _typed(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _typed(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def is_entry(kind: type, key: str) -> bool:
    """Whether a setting is the name of something with its options (`vpeft.entries`), such as `method`."""
    return any(get_origin(one) is dict for one in alternatives(schema(kind).get(key, Any)))


def near(kind: type, name: str, prefix: str) -> str:
    """What an unknown key may have meant: the same word elsewhere, or a name near it at its own level."""
    word = name.removeprefix(prefix)
    elsewhere = [known for known in schema(kind) if known.endswith(f".{word}")]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    level = {known.removeprefix(prefix).split(".")[0]: None for known in schema(kind) if known.startswith(prefix)}
    return did_you_mean(word, level, prefix)


def check_type(kind: type, key: str, label: str, setting: Setting) -> None:
    """Refuse a value that is not of the type in the schema."""
    value, hint = setting.value, schema(kind)[key]
    if is_entry(kind, key):
        several = any(get_origin(one) is list for one in alternatives(hint))
        specs: list[Any] = value if several and isinstance(value, list) else [value]
        none = value is None and type(None) in alternatives(hint)
        if none or all(isinstance(spec, Mapping) for spec in specs):
            return
        example = {"method": "{name: vpt, prompts: 10}, or a list of these"}.get(key, "{name: ...}")
        raise ConfigError(
            f"{setting.source}: {label} must be a mapping with a name, such as {example}, not {quoted(value)}"
        )
    fits = value is not None or type(None) in alternatives(hint)
    if fits:
        nested: Any = functools.reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
        try:
            _parser(kind).parse_object(nested, defaults=False)
        except (argparse.ArgumentError, TypeError, ValueError):
            fits = False
    if not fits:
        near_by = difflib.get_close_matches(str(value), get_args(hint), n=1) if get_origin(hint) is Literal else []
        meant = f"; did you mean '{near_by[0]}'?" if near_by else ""
        raise ConfigError(f"{setting.source}: {label} must be {words(hint)}, not {quoted(value)}{meant}")


def words(kind: Any) -> str:
    """A type as an error names it: `a whole number or null`."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is list:
        return f"a list of {words(get_args(kind)[0]).removeprefix('a ')}s"
    return " or ".join("null" if one is type(None) else _TYPES.get(one) or words(one) for one in alternatives(kind))


def alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def quoted(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else "null" if value is None else str(value)


def parse_types(kind: type, nested: dict[str, Any]) -> jsonargparse.Namespace:
    """Values of the types in the schema, defaults filled in, from a nested mapping whose types fit."""
    return _parser(kind).parse_object(nested)


@functools.cache
def _parser(kind: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser
