"""A fixture of all tests of reports."""

import pytest

from vpeft.results import append_row, report


@pytest.fixture
def made(tmp_path):
    """A function that writes rows and reports on them."""

    def build(rows, **words):
        file = tmp_path / "results.jsonl"
        file.unlink(missing_ok=True)
        for one in rows:
            append_row(file, one)
        return report.build([file], **words)

    return build
