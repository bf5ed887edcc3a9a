"""Tables and drawings in the documentation, written from the files of benchmarks.

A page has `<!-- bench FILE PART -->`, whatever was written before, and `<!-- /bench -->`. FILE is beside the page; PART
is a table of it (`tables.TABLES`, `curve_tables.parts`, `epochs.parts`) or `picture`, which is a file beside FILE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpeft import cli
from vpeft.bench import curve_tables, epochs, picture, tables
from vpeft.bench.record import read
from vpeft.fetch import write_atomic

_BLOCK = re.compile(r"(?P<head><!-- bench (?P<file>\S+) (?P<part>\w+) -->\n).*?(?P<foot><!-- /bench -->)", re.S)
_PARTS = {"methods": tables.parts, "curves": curve_tables.parts, "epochs": epochs.parts}


def parts(data: Mapping[str, Any]) -> dict[str, str]:
    """The tables of a file, by name.

    Raises:
        ValueError: It holds measurements of another form.
    """
    with _of_this_form():
        return _PARTS[data["kind"]](data)


def drawing(data: Mapping[str, Any]) -> str:
    """The drawing of a file, as SVG.

    Raises:
        ValueError: It has none, or holds measurements of another form.
    """
    if data["kind"] == "epochs":
        raise ValueError("A file of epochs has no drawing; leave --picture out.")
    with _of_this_form():
        return picture.figure(data).file() if data["kind"] == "methods" else curve_tables.drawing(data)


@contextmanager
def _of_this_form() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        if cli.sentence(error):  # what a table needs that the file has not
            raise
        raise ValueError(
            f"These measurements cannot be shown ({type(error).__name__}: {error!s:.200}); give a file that "
            "tools/bench.py of this version wrote, or measure again."
        ) from error


def written(page: Path) -> dict[Path, str]:
    """What a page and the drawings that it shows should hold.

    Raises:
        FileNotFoundError: A file that the page names is not there.
        ValueError: It has no such table.
    """
    files: dict[Path, str] = {}

    def block(found: re.Match[str]) -> str:
        file, part = page.parent / found["file"], found["part"]
        data = read(file)
        if part == "picture":
            drawn = file.with_suffix(".svg")
            files[drawn] = drawing(data)
            text = f"![{_alternative(data)}]({drawn.relative_to(page.parent)})"
        else:
            known = parts(data)
            if part not in known:
                raise ValueError(f"{page}: {found['file']} has no table '{part}'; it has {', '.join(known)}.")
            text = known[part]
        return f"{found['head']}\n{text}\n\n{found['foot']}"

    files[page] = _BLOCK.sub(block, page.read_text())
    return files


def _alternative(data: Mapping[str, Any]) -> str:
    if data["kind"] == "methods":
        return "Step time against peak memory of every case, both over full fine-tuning"
    return "Time along every axis, measured and as theory expects"


def refresh(page: Path) -> list[Path]:
    """Write a page and its drawings anew; returns what was written."""
    files = written(page)
    for path, text in files.items():
        write_atomic(path, text.encode())
    return list(files)
