"""What is timed beside transformers' Trainer computes the same there and here, and trains the same."""

import json

import pytest

from mllm import bench
from mllm.bench_cases import CASES, PEFT
from mllm.bench_setting import Setting, conversations
from mllm.data import rendered
from tests.mllm.runs import write_language


@pytest.fixture(scope="module")
def samples():
    return rendered.read(False, {"train": 6})["train"]


@pytest.fixture(scope="module")
def measured(samples, tmp_path_factory):
    setting = Setting(
        language=write_language(tmp_path_factory.mktemp("language")),
        dim=64,
        depth=2,
        image_size=28,
        samples=6,
        questions=3,
        batch=4,
        capacity=60,
        rounds=1,
        threads=1,
    )
    said = []
    found = bench.bench(setting, samples, memory=False, say=said.append)
    assert said == ["round 1 of 1 done"]
    return setting, found


def test_all_cases_train_the_same_from_the_same_loss(measured):
    _, found = measured
    assert list(found) == list(CASES)
    assert len({(one.parameters, one.samples, one.tokens) for one in found.values()}) == 1
    for one in found.values():
        assert one.loss == pytest.approx(found[PEFT].loss, rel=1e-5)
        assert len(one.seconds) == 1
        assert one.seconds[0] > 0


def test_the_trainer_pads_and_packed_rows_are_filled(measured):
    _, found = measured
    assert found[PEFT].steps == found["neither"].steps == found["features kept"].steps == 2
    assert found["packed"].positions == found["both"].positions < found["neither"].positions
    assert found["both"].tokens <= found["both"].positions


def test_a_table_and_a_file_say_what_was_measured(measured):
    setting, found = measured
    lines = bench.table(found).splitlines()
    assert len(lines) == 2 + len(CASES)
    assert lines[2].startswith(f"| {PEFT} | 2 |")
    assert lines[2].endswith("| 1.00 | - | - |")
    stored = json.loads(bench.to_json(setting, found))
    assert stored["cases"]["both"]["seconds"] == found["both"].seconds
    assert stored["setting"]["capacity"] == 60


def test_cases_that_compute_something_else_are_not_timed(samples, measured, monkeypatch):
    setting, _ = measured
    monkeypatch.setattr("mllm.bench_cases.Ours.first_loss", lambda self: 1.0)
    with pytest.raises(AssertionError, match="not close"):
        bench.bench(setting, samples, ["both"], memory=False)


def test_conversations_have_from_one_question_on_and_one_image(samples):
    found = conversations(samples, Setting(samples=6, questions=3))
    assert [len(one["conversations"]) for one in found] == [2, 4, 6, 2, 4, 6]
    for one in found:
        said = [turn["value"] for turn in one["conversations"]]
        assert [text.count("<image>") for text in said] == [1] + [0] * (len(said) - 1)
        assert [turn["from"] for turn in one["conversations"]] == ["human", "gpt"] * (len(said) // 2)
