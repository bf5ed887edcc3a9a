"""Rows are appended by processes that know nothing of each other, and read while they are."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row, whole and on disk when this returns.

    A line that a crash left without its end is closed first, so it cannot swallow the new one.

    Args:
        path: The file; made, with its folder, where missing.
        row: Plain JSON values.

    Raises:
        ValueError: A number in the row is NaN or infinite, which JSON does not know.
        OSError: The row could not be written; the file is as it was.
    """
    try:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise ValueError(f"A result row may hold no NaN and no infinity; write None instead ({error}).") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(f"{path} took only a part of the row: the disk is full.")
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a file; an incomplete line is left out with a warning that names it."""
    rows: list[dict[str, Any]] = []
    for number, row in numbered_rows(path):
        if row is None:
            warnings.warn(f"{path}, line {number}: not a whole result row; it is left out.", stacklevel=2)
        else:
            rows.append(row)
    return rows


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of a file that are not blank, counted from 1; None is one that is no JSON mapping."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is one of the former
            row = None
        yield number, row if isinstance(row, dict) else None
