"""Answers are those of the model to the samples that are said, and controls do not show the image."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mllm import evaluation
from mllm.card import VERSION
from mllm.data.shelf import Shelf
from mllm.evaluation import Answer, answer_all, choose, shuffled
from mllm.features import Features
from mllm.generate import Decoding, answers
from mllm.sample import Held, Sample, Turn
from mllm.schema import EvaluationConfig, MLLMConfig
from tests.mllm.evaluations import asked, data, see, settings, ten, write
from tests.mllm.models import CONNECTORS, NAMES, vlm


@pytest.fixture
def root(tmp_path):
    return ten(tmp_path)


@pytest.fixture
def seeing(monkeypatch):
    monkeypatch.setattr(evaluation, "answers", see)


@pytest.mark.parametrize("connector", ["mlp", "gated_xattn", "qformer_instructed"])
def test_answers_are_what_the_model_says_to_each_prompt(root, connector):
    model = vlm(CONNECTORS[NAMES.index(connector)]).eval()
    module = data(root, model)
    found = answer_all(model, module, "test", settings())
    alone = data(root, model, batch=1).loader("test", prompts=True)
    expected = [answers(model, one, Decoding(max_new_tokens=3), [2])[0] for one in alone]
    assert [row.answer for row in found.rows] == expected
    assert found.rows[3] == Answer("number 3", "a b ?", ("e",), expected[3])
    right = sum(said == "bcdefghijk"[i] for i, said in enumerate(expected))
    assert found.score == right / 10


def test_kept_features_give_the_same_answers(root):
    model = vlm().eval()
    plain = answer_all(model, data(root, model), "test", settings(controls=True))
    module = data(root, model, by_index=True)
    features = Features(model.vision, model.mean, model.std)
    features.make(module.pictures)
    kept = answer_all(model, module, "test", settings(controls=True), features)
    assert kept.rows == plain.rows
    assert kept.controls == plain.controls


def test_controls_are_at_chance_for_a_model_that_looks(root, seeing):
    model = vlm()
    found = answer_all(model, data(root, model), "test", settings(controls=True))
    values = found.values()
    assert values["score"] == 1
    assert values["shuffled"] == 0, "no two samples show the same"
    assert values["blank"] == 0
    assert values["card"]["controls"].keys() == {"shuffled", "blank"}


def test_text_alone_has_no_control(tmp_path, seeing):
    write(tmp_path, [asked(0, "b"), asked(1, "c"), asked(2, "d", images=0)])
    model = vlm()
    found = answer_all(model, data(tmp_path, model), "test", settings(controls=True))
    assert len(found.rows) == 3
    assert [ids for ids, _ in found.controls.values()] == [["number 0", "number 1"]] * 2


def test_shuffling_gives_each_question_as_many_other_images():
    images = [Held(str(i), b"") for i in range(6)]
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    shown = [images[:1], images[1:2], images[:1], images[2:4], images[4:6], images[1:3]]
    samples = [Sample(str(i), tuple(own), turns) for i, own in enumerate(shown)]
    found = list(shuffled(Shelf(samples), "key"))
    assert [one.id for one in found] == [one.id for one in samples]
    for before, after in zip(samples, found, strict=True):
        assert len(after.images) == len(before.images)
        assert not set(after.images) & set(before.images)
    assert [one.images for one in shuffled(Shelf(samples), "key")] == [one.images for one in found]


def test_one_image_cannot_be_shuffled(tmp_path, seeing):
    write(tmp_path, [asked(0, "a"), asked(1, "b", images=2)])
    model = vlm()
    with pytest.raises(ValueError, match=r"none has other 1 than sample 'number 0'. Evaluate more samples"):
        answer_all(model, data(tmp_path, model), "test", settings(controls=True))


def test_some_samples_are_chosen_by_hashes_and_stay_in_order(root, seeing):
    model = vlm()
    module = data(root, model)
    some = [row.id for row in answer_all(model, module, "test", settings(samples=4)).rows]
    assert some == sorted(some)
    assert len(some) == 4
    assert [one.id for one in choose(module, "test", 4)] == some
    assert set(some) < {one.id for one in choose(module, "test", 7)}, "more are these and others"
    assert some != [f"number {i}" for i in range(4)]
    write(root, [asked(i, "bcdefghijk"[i]) for i in reversed(range(10))])
    again = choose(data(root, model), "test", 4)
    assert {one.id for one in again} == set(some), "the order of the file does not matter"


def test_captions_of_one_image_are_one_sample(tmp_path, seeing):
    records = [{"image": f"{i}.png", "caption": ["a b c", "a b d"]} for i in range(3)]
    write(tmp_path, records)
    model = vlm()
    found = answer_all(model, data(tmp_path, model), "test", settings(score="cider"))
    assert [row.references for row in found.rows] == [("a b c", "a b d")] * 3


def test_several_humans_are_what_vqa_scores_against(tmp_path, seeing):
    write(tmp_path, [asked(i, "a", answers=["bcd"[i]] * 2 + ["z"] * 8) for i in range(3)])
    model = vlm()
    assert answer_all(model, data(tmp_path, model), "test", settings(score="vqa")).score == pytest.approx(0.6)


def test_values_are_numbers_by_kind_and_a_card(root, seeing):
    model = vlm()
    module = data(root, model)
    module.config.task = "easyvqa"
    records = [asked(i, "bcdefghijk"[i] if i % 2 else "z") | {"id": f"test/{i}/{'xy'[i % 2]}"} for i in range(10)]
    write(root, records)
    module = data(root, model)
    module.config.task = "easyvqa"
    found = answer_all(model, module, "test", settings(controls=True, beams=2))
    values = found.values()
    card = values.pop("card")
    assert values == {
        "samples": 10,
        "lost": 0,
        "score": 0.5,
        "score/x": 0,
        "score/y": 1,
        **{f"{name}{kind}": 0 for name in ("shuffled", "blank") for kind in ("", "/x", "/y")},
    }
    assert json.loads(json.dumps(card)) == card
    assert card["version"] == VERSION
    assert card["prompt"] == {"template": "bare", "system": None, "example": "<image>a b ?", "tokens_per_image": 16}
    assert card["decoding"] == {"method": "beam search", "beams": 2, "max_new_tokens": 3, "ends": [2]}
    assert card["scoring"]["rule"] == "exact"
    counts = {"count": 10, "of": 10, "chosen": "all", "lost": 0}
    assert card["samples"] == {"task": "easyvqa", "part": "test"} | counts
    assert card["weights"]["language"] == model.about.weights.sha256
    before = card["weights"]["trained"]
    next(model.connector.parameters()).data += 1
    after = answer_all(model, module, "test", settings(samples=3)).card
    assert after["weights"]["trained"] != before
    assert after["samples"]["chosen"] == "first by sha256 of 'easyvqa-test/' and the sample's id"


def test_two_processes_answer_their_shares_and_know_all(root, seeing, monkeypatch):
    model = vlm()
    parts: list[tuple[dict[int, str], set[int]]] = []

    def rank(number: int) -> Any:
        return SimpleNamespace(
            global_rank=number,
            world_size=2,
            is_global_zero=not number,
            precision_plugin=SimpleNamespace(forward_context=torch.no_grad),
        )

    def gather(into: list[Any], part: tuple[dict[int, str], set[int]]) -> None:
        parts.append(part)
        into[:] = [(dict.fromkeys(range(10), "?"), set())] if len(parts) == 1 else parts

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    first = answer_all(model, data(root, model), "test", settings(), trainer=rank(1))
    assert first.score == 0, "of the other process nothing was known here"
    found = answer_all(model, data(root, model), "test", settings(), trainer=rank(0))
    assert [row.answer for row in found.rows] == list("bcdefghijk")
    assert all(len(said) == 5 for said, _ in parts)
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda into, part: into.__setitem__(slice(None), [part, (parts[0][0], {3})]),
    )
    left = answer_all(model, data(root, model), "test", settings(), trainer=rank(0))
    assert [row.id for row in left.rows] == [f"number {i}" for i in range(10) if i != 3], (
        "what one process lost, all have"
    )


def test_every_answer_can_be_written(root, seeing, tmp_path):
    model = vlm()
    answer_all(model, data(root, model), "test", settings(samples=2)).write(tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0].keys() == {"id", "question", "references", "answer", "score"}
    assert lines[0]["score"] == 1


def test_a_part_without_samples_is_refused(root):
    model = vlm()
    module = data(root, model)
    with pytest.raises(ValueError, match="talks has no samples in 'val', so there is nothing to answer"):
        answer_all(model, module, "val", settings())


def test_controls_without_a_score_are_refused():
    config = MLLMConfig(evaluation=EvaluationConfig(controls=True))
    assert [key for key, _ in config.conflicts()] == ["evaluation.controls"]
