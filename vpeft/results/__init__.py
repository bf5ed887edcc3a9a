"""results.jsonl: one row a run, one line a row."""

from vpeft.results.file import append_row, read_rows
from vpeft.results.row import Row

__all__ = ["Row", "append_row", "read_rows"]
