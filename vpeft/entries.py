"""Entries of a configuration that are constructor calls: `{name: vpt, prompts: 10}`.

The signature of what is called is the schema: its keyword arguments are the options, their annotations the types.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_origin, get_type_hints

Table = Mapping[str, Callable[..., Any]]


def check(what: str, table: Table, entry: Any, given: Sequence[str]) -> None:
    """Raise ValueError unless `entry` names something in the table and options that it has.

    Values are checked for their type here and for their meaning by what is called.

    Args:
        what: Is in the table, in a word: method, neck, head.
        table: By name.
        entry: From a configuration.
        given: Arguments that the code gives, which are no options.
    """
    if not isinstance(entry, Mapping) or "name" not in entry:
        first = next(iter(table))
        raise ValueError(f"{what} is {entry!r}; it is written as a mapping with a name, such as {{name: {first}}}.")
    name = entry["name"]
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name), table, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(table)}."
        raise ValueError(f"there is no {what} '{name}'; {hint}")
    hints = _signature(table[name], given)
    for key, value in entry.items():
        if key == "name":
            continue
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(hints) or 'no options'}."
            raise ValueError(f"{what} {name} has no '{key}'; {hint}")
        if not _fits(value, hints[key]):
            raise ValueError(f"{what} {name}: {key} is {value!r}, which is not {_words(hints[key])}.")


def options(table: Table, name: str, given: Sequence[str]) -> dict[str, Any]:
    """The options of a name in the table, and their defaults."""
    parameters = inspect.signature(table[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in given}


def resolve(table: Table, entry: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """`entry` with every option written out, so that a later change of a default changes nothing."""
    return {"name": entry["name"], **options(table, entry["name"], given), **entry}


def build(table: Table, entry: Mapping[str, Any], *given: Any) -> Any:
    """Call what the entry names, with what the code gives and the entry's options.

    Raises:
        ValueError: what is called refuses its options; the sentence begins with its name.
    """
    kept = {key: value for key, value in entry.items() if key != "name"}
    try:
        return table[entry["name"]](*given, **kept)
    except ValueError as error:  # torch's own checks of a value do not say whose it is
        named = str(error).startswith(f"{entry['name']}")
        raise ValueError(str(error) if named else f"{entry['name']}: {error}") from error


def _signature(called: Callable[..., Any], given: Sequence[str]) -> dict[str, Any]:
    function = called.__init__ if inspect.isclass(called) else called
    unknown = {"Backbone": object}  # imported for type checkers only
    hints = get_type_hints(function, localns=unknown)
    return {key: hint for key, hint in hints.items() if key not in (*given, "return")}


def _fits(value: Any, hint: Any) -> bool:
    union: tuple[Any, ...] = getattr(hint, "__args__", ())
    if get_origin(hint) is Literal:
        return value in union
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if getattr(hint, "__origin__", None) in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, union[0]) for item in value)
    if union:
        return any(_fits(value, member) for member in union)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names.get(hint, str(hint).replace("typing.", "").replace("collections.abc.", ""))
