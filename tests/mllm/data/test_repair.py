"""mllm.data.repair, and data_prep/llava.py called as a function."""

from __future__ import annotations

import copy
import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm.data.conversations import load_records, read
from mllm.data.repair import ACTIONS, examine
from tests.mllm.data.files import ROUND, talks, write_images, write_talks

main: Callable[[list[str]], int] = runpy.run_path(str(Path(__file__).parents[3] / "data_prep/llava.py"))["main"]

Q, A = ROUND
TEXT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path, 3)
    (tmp_path / "bad.png").write_bytes(b"no image")
    return tmp_path


ONE, TWO = {"id": "7", "image": "0.png"}, {"id": "7", "image": ["0.png", "1.png"]}
CASES: list[tuple[Any, list[str], Any]] = [
    ({**ONE, "conversations": [gpt("Hi"), Q, A]}, ["assistant_first"], [Q, A]),
    ({**ONE, "conversations": [Q, A, human("Why?")]}, ["no_answer"], [Q, A]),
    ({**ONE, "conversations": [Q, A, human(" "), gpt("so")]}, ["empty_turn"], [Q, A]),
    ({**ONE, "conversations": [Q, gpt(""), *TEXT]}, ["empty_turn"], [human("<image>\nWhy?"), gpt("so")]),
    ({**ONE, "conversations": TEXT}, ["markers"], [human("<image>\nWhy?"), gpt("so")]),
    (
        {**ONE, "conversations": [Q, A, human("And\n<image>"), gpt("so")]},
        ["markers"],
        [Q, A, human("And"), gpt("so")],
    ),
    ({**ONE, "conversations": [Q, A, human("<image>"), gpt("so")]}, ["markers"], [Q, A]),
    ({"id": "7", "conversations": [Q, A]}, ["markers"], [human("What colour?"), A]),
    ({**TWO, "conversations": [Q, A]}, ["markers"], [human("<image>\n<image>\nWhat colour?"), A]),
    ({**ONE, "conversations": [Q, gpt("a <image> b")]}, ["marker_in_answer"], [Q, gpt("a  b")]),
    ({**ONE, "conversations": [human("Why?"), Q, A]}, ["order"], None),
    ({**ONE, "conversations": []}, ["no_turns"], None),
    ({**ONE, "conversations": [Q, gpt(" ")]}, ["empty_turn", "no_turns"], None),
    ({**ONE, "image": "9.png", "conversations": [Q, A]}, ["missing_image"], None),
    ({**ONE, "image": "bad.png", "conversations": [Q, A]}, ["unreadable_image"], None),
    ({**ONE, "image": "bad.png", "conversations": [Q, A, Q]}, ["unreadable_image", "markers", "no_answer"], None),
    ({**ONE, "image": "../0.png", "conversations": [Q, A]}, ["malformed"], None),
    ({"id": "7"}, ["malformed"], None),
    ("text", ["malformed"], None),
]


@pytest.mark.parametrize(("record", "kinds", "turns"), CASES)
def test_every_fault_is_found_and_repaired_or_left_out(root: Path, record: Any, kinds: list[str], turns: Any) -> None:
    before = copy.deepcopy(record)
    found = examine([record], root, "talks.json")
    assert sorted(fault.kind for fault in found.faults) == sorted(kinds)
    assert record == before
    if turns is None:
        assert found.repaired == []
    else:
        assert found.repaired == [{**record, "conversations": turns}]
        assert not examine(found.repaired, root, "talks.json").faults


def test_every_kind_of_fault_has_its_action() -> None:
    assert {kind for _, kinds, _ in CASES for kind in kinds} | {"duplicated_id"} == set(ACTIONS)


def test_ids_given_twice_become_different(root: Path) -> None:
    records = [{"id": id, "conversations": TEXT} for id in ("a", "a#2", "a", 5, "5", "a")]
    found = examine(records, root, "talks.json")
    assert [record["id"] for record in found.repaired] == ["a", "a#2", "a#3", 5, "5#2", "a#4"]
    assert [fault.number for fault in found.faults] == [3, 5, 6]
    assert not examine([{"conversations": TEXT}] * 2, root, "talks.json").faults


def test_each_image_is_read_once_and_said(root: Path) -> None:
    record = {"id": "7", "image": "0.png", "conversations": ROUND}
    said: list[tuple[int, int]] = []
    examine([record, {**record, "id": "8"}], root, "talks.json", lambda *done: said.append(done))
    assert said == [(1, 1)]


def faulty(root: Path) -> Path:
    records = write_talks(root, 6)
    records[1]["conversations"] = [gpt("Hi"), *records[1]["conversations"]]
    (root / "images/3.png").unlink()
    (root / "talks.json").write_text(json.dumps(records))
    return root / "talks.json"


def test_a_whole_file_is_said_to_be_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_talks(tmp_path, 6)
    assert main([str(tmp_path / "talks.json"), "--images", str(tmp_path)]) == 0
    assert "0 of 6 samples in" in capsys.readouterr().out


def test_faults_are_shown_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = faulty(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(file), "--images", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "assistant_first: 1 (the turns before the first question are left out in a repaired copy)" in out
    assert "number 2, 'talk1', starts with the assistant" in out
    assert "missing_image: 1" in out
    assert "2 of 6 samples in" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["new.json", "new.jsonl"])
def test_a_repaired_copy_has_a_report_of_all_that_was_changed(tmp_path: Path, name: str) -> None:
    file = faulty(tmp_path)
    old = file.read_bytes()
    assert main([str(file), "--images", str(tmp_path), "--output", str(tmp_path / name)]) == 0
    assert file.read_bytes() == old
    samples = list(read(load_records(tmp_path / name), tmp_path / name, tmp_path))
    assert [sample.id for sample in samples] == ["talk0", "talk1", "talk2", "talk4", "talk5"]
    assert load_records(tmp_path / name) == [record for record in talks(6) if record["id"] != "talk3"]
    report = json.loads((tmp_path / "new.report.json").read_text())
    assert report["sha256"] == hashlib.sha256(old).hexdigest()
    assert (report["samples"], report["written"]) == (6, 5)
    assert report["faults"] == {"assistant_first": 1, "missing_image": 1}
    assert [(fault["number"], fault["id"], fault["kind"]) for fault in report["found"]] == [
        (2, "talk1", "assistant_first"),
        (4, "talk3", "missing_image"),
    ]
    assert main([str(tmp_path / name), "--images", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone.json", "--images", "."], "gone.json cannot be read: No such file"),
        (["talks.json", "--images", "nowhere"], "--images nowhere is not a folder"),
        (["talks.json", "--images", ".", "--output", "talks.json"], "talks.json exists and is not replaced"),
        (["talks.json", "--images", ".", "--output", "old.json"], "old.report.json exists and is not replaced"),
        (["broken.json", "--images", "."], "broken.json is not JSON"),
    ],
)
def test_what_cannot_be_looked_through_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_talks(tmp_path, 2)
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "old.report.json").write_text("")
    assert main(arguments) == 2
    assert reason in capsys.readouterr().err


def test_a_copy_that_cannot_be_written_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = faulty(tmp_path)
    (tmp_path / "plain").write_text("")
    assert main([str(file), "--images", str(tmp_path), "--output", str(tmp_path / "plain/new.json")]) == 1
    assert "could not be written" in capsys.readouterr().err
