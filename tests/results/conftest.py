"""A fixture of all tests of reports."""

import json

import pytest

from vpeft.results import report


@pytest.fixture
def made(tmp_path):
    """A function that writes rows and reports on them."""

    def build(rows, **words):
        file = tmp_path / "results.jsonl"
        file.write_text("".join(f"{json.dumps(one, allow_nan=False)}\n" for one in rows), encoding="utf-8")
        return report.build([file], **words)

    return build
