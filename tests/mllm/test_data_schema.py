from __future__ import annotations

from typing import Any

import pytest

from mllm.data_schema import DataConfig, FilesConfig


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"pack": True, "group_by_length": True}, "data.group_by_length", "fills every row"),
        ({"question": "Why?"}, "data.question", "must have {} where the question goes"),
        ({"max_length": 0}, "data.max_length", "must be at least 1, not 0"),
        ({"count": 0}, "data.count", "must be at least 1, not 0"),
        ({"files": FilesConfig(train=["a.json"])}, "data.files", "easyvqa needs no files"),
        ({"task": "mine"}, "data.files", "'mine' has no files; give data.files.train"),
    ],
)
def test_settings_at_odds_are_named(change: dict[str, Any], key: str, words: str) -> None:
    ((found, sentence),) = DataConfig(**change).conflicts()
    assert found == key
    assert words in sentence


def test_good_settings_are_not_complained_of() -> None:
    assert not list(DataConfig().conflicts())
    assert not list(DataConfig(task="mine", files=FilesConfig(train=["a.json"]), pack=True).conflicts())
