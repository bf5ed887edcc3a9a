"""Docstrings in parts, and their words as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator


def joined(block: str) -> str:
    """In one line."""
    return " ".join(block.split())


def sections(text: str) -> tuple[str, dict[str, str]]:
    """Text before the first of `Args:` and `Raises:`, and the text of each."""
    parts = re.split(r"^(Args|Raises):\n", text, flags=re.M)
    return parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> Iterator[tuple[str, str]]:
    """`name: meaning`, which goes on in lines indented further."""
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section)):
        name, mark, meaning = entry.partition(":")
        if mark:
            yield name.strip(), joined(meaning)


def linked(text: str) -> str:
    """With a link at every arXiv id."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def escaped(text: str) -> str:
    """Prose for Markdown: stars, bars and brackets are what they are, but for code in backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([*<\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[::2] = [linked(re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", piece)) for piece in plain]
    return "".join(pieces)
