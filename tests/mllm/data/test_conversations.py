from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm.data.conversations import load_records, read
from mllm.sample import Sample, Turn
from tests.mllm.data.files import ROUND


def samples(folder: Path, *records: Any, name: str = "talks.json") -> list[Sample]:
    text = "\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(records)
    (folder / name).write_text(text)
    return list(read(load_records(folder / name), folder / name, folder))


@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
def test_llavas_records_become_samples(tmp_path: Path, name: str) -> None:
    system = [{"from": "system", "value": "Be brief."}]
    two = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "both"}]
    first, second, third = samples(
        tmp_path,
        {"id": 7, "image": "a/b.png", "conversations": ROUND},
        {"image": ["a.png", "b.png"], "conversations": [*system, *two]},
        {"id": "x", "conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": "so"}]},
        name=name,
    )
    turns = (Turn("user", "<image>\nWhat colour?"), Turn("assistant", "red"))
    assert first == Sample("7", (tmp_path / "a/b.png",), turns, str(tmp_path / name))
    assert (second.id, second.images) == ("number 2", (tmp_path / "a.png", tmp_path / "b.png"))
    assert second.turns[0] == Turn("system", "Be brief.")
    assert (third.images, third.turns[0].role) == ((), "user")


def test_the_answers_of_several_humans_are_kept(tmp_path: Path) -> None:
    record = {"id": "7", "image": "a.png", "conversations": ROUND}
    forms = (["red", "dark red"], [{"answer": "red", "answer_id": 1}, {"answer": "dark red"}])
    for sample in samples(tmp_path, *({**record, "answers": answers} for answers in forms)):
        assert sample.answers == ("red", "dark red")
    assert samples(tmp_path, record)[0].answers == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": "7"}, "has no list 'conversations'"),
        ("text", "sample 'number 1' has no list"),
        ({"id": "7", "conversations": [{"from": "bot", "value": "x"}]}, r"has the turn .* a turn has 'from' \(human"),
        ({"id": "7", "conversations": [{"from": "gpt"}]}, "has the turn"),
        ({"id": "7", "image": 5, "conversations": ROUND}, "has the image 5; it is a path"),
        ({"id": "7", "image": "../a.png", "conversations": ROUND}, r"has the image '\.\./a\.png', which leaves"),
        ({"id": "7", "image": "/etc/a.png", "conversations": ROUND}, "which leaves"),
        ({"id": "7", "image": "a.png", "conversations": ROUND[1:]}, "starts with the assistant"),
        ({"id": "7", "conversations": ROUND}, "has 1 times <image> and 0 images"),
        ({"id": "7", "conversations": ROUND, "answers": "red"}, "has the answers red; they are a list of texts"),
        ({"id": "7", "conversations": ROUND, "answers": [{"text": "red"}]}, "has the answers"),
    ],
)
def test_a_record_that_is_none_names_file_and_id(tmp_path: Path, record: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"talks\.json: sample '(7|number 1)' .*{reason}|talks\.json: {reason}"):
        samples(tmp_path, record)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'{"id": 1}\n{"id": 2}', "is not JSON: Extra data at line 2; a file with one object a line"),
        ("a.json", b"[{", "is not JSON: .* at line 1"),
        ("a.json", b'{"id": 1}', "holds a dict and not a list"),
        ("a.json", b"\xff\xfe", r"is not UTF-8 text \(.* at byte 0\)"),
        ("a.jsonl", b'{"id": 1}\n\n{"id"', "line 3, is not JSON"),
        ("gone.json", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* {reason}"):
        load_records(tmp_path / name)
