"""Valid files with something wrong in them, drawn by hypothesis: bytes of any format, and trees of JSON or YAML."""

from __future__ import annotations

import copy
import re
from typing import Any

from hypothesis import strategies as st

_HUGE = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
_NUMBERS = [b"-1", b"0", b"1e999", b"99999999999999999999999", b"4294967296", b"NaN"]
WORDS = ["", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "é 文 😀", "nan", "<b>", "None", "x" * 300, "a\nb", "{}"]
_NAMES = st.sampled_from(WORDS) | st.text(max_size=5)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**30, -(2**64)]),
    st.floats(width=32),
    _NAMES,
)
VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=6
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a file after one to four accidents: most of them in its first and last bytes, where headers are."""
    data = whole
    for _ in range(draw(st.integers(1, 4))):
        data = _ACCIDENTS[draw(st.sampled_from(sorted(_ACCIDENTS)))](draw, data, whole)
    return data


def _place(draw: st.DrawFn, data: bytes) -> int:
    last = max(len(data) - 1, 0)
    near = st.integers(0, min(last, 96))
    return draw(st.one_of(near, near.map(lambda at: last - at), st.integers(0, last)))


def _flip(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in data[at : at + 1]) + data[at + 1 :]


def _cut(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    return data[: _place(draw, data)]


def _drop(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + data[at + draw(st.integers(1, 64)) :]


def _splice(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    start, at = _place(draw, whole), _place(draw, data)
    return data[:at] + whole[start : start + draw(st.integers(1, 512))] + data[at:]


def _insert(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]


def _length(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    """A number of 1 to 8 bytes, as headers state sizes with: at its place stands an extreme one."""
    at, size, order = _place(draw, data), draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
    number = draw(st.sampled_from(_HUGE)) % 256**size
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _digits(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    """The same where numbers are text."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    one = found[draw(st.integers(0, len(found) - 1))]
    return data[: one.start()] + draw(st.sampled_from(_NUMBERS)) + data[one.end() :]


def _other(draw: st.DrawFn, data: bytes, whole: bytes) -> bytes:
    return draw(st.sampled_from([b"[" * 30_000, b'{"a":' * 30_000, b"9" * 5000]) | st.binary(max_size=64))


_ACCIDENTS = {
    "flip": _flip,
    "cut": _cut,
    "drop": _drop,
    "splice": _splice,
    "insert": _insert,
    "length": _length,
    "digits": _digits,
    "other": _other,
}


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of mappings, lists and values in which one to three places hold something else, or nothing."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(VALUES)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["other", "other", "gone", "wrapped", "renamed", "twice", "elsewhere"])):
            case "other":
                holder[key] = draw(VALUES)
            case "gone":
                del holder[key]
            case "wrapped":
                holder[key] = draw(st.sampled_from([[holder[key]], {"name": holder[key]}]))
            case "renamed" if isinstance(holder, dict):
                holder[draw(_NAMES)] = holder.pop(key)
            case "twice" if isinstance(holder, list):
                holder.insert(0, copy.deepcopy(holder[key]))
            case _:
                other, place = places[draw(st.integers(0, len(places) - 1))]
                holder[key] = copy.deepcopy(other[place])
    return tree


def _places(tree: Any) -> Any:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
