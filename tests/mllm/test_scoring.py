"""Scores of answers, by hand-computed cases."""

import pytest

from mllm.schema import EvaluationConfig
from mllm.scoring import SCORERS


def scored(rule, answers, references):
    return SCORERS[rule](answers, references)


def test_exact_compares_normalised_answers_with_any_right_one():
    found = scored("exact", ["A dog.", "two", "cat", ""], [["dog"], ["3", "2"], ["a cat on a mat"], ["no"]])
    assert found.each == [1, 1, 0, 0]
    assert found.score == 0.5


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # k of 10 agree: k of the ten leave one of them out, min(1, (k - 1) / 3), the others none, min(1, k / 3).
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_is_the_mean_over_nine_of_ten_humans(agreeing, expected):
    humans = ["Yes."] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert scored("vqa", ["yes"], [humans]).score == pytest.approx(expected, abs=1e-12)


def test_vqa_is_a_mean_over_questions():
    found = scored("vqa", ["red", "blue"], [["red"] * 10, ["green"] * 9 + ["blue"]])
    assert found.each == [1, pytest.approx(0.3)]
    assert found.score == pytest.approx(0.65)


def test_vqa_with_one_human_answer_is_refused():
    with pytest.raises(ValueError, match=r"question 2 has 1. Give at least 4 as `answers` of each record"):
        scored("vqa", ["a", "b"], [["a"] * 10, ["b"]])


def test_yes_no_counts_as_pope_does():
    answers = ["Yes, there is.", "No.", "There is not a dog. Yes", "yes", "Perhaps", "no, not at all"]
    right = [["yes"], ["yes"], ["no"], ["No"], ["yes"], ["no"]]
    found = scored("yes_no", answers, right)
    # Said yes: 1, 4, 5. Right yes: 1, 2, 5. Both: 1, 5.
    assert found.each == [1, 0, 1, 0, 1, 1]
    assert found.score == pytest.approx(4 / 6)
    assert found.values == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "yes_share": 0.5,
        "unclear": pytest.approx(1 / 6),
    }


@pytest.mark.parametrize(("answer", "right"), [("no", "no"), ("no", "yes"), ("yes", "no")])
def test_yes_no_without_a_true_yes_has_an_f1_of_0(answer, right):
    assert scored("yes_no", [answer], [[right]]).values["f1"] == 0


def test_yes_no_needs_yes_or_no_as_the_right_answer():
    with pytest.raises(ValueError, match=r"question 1 has 'red'. Use evaluation.score exact"):
        scored("yes_no", ["yes"], [["red"]])


def test_cider_is_the_mean_over_captions():
    found = scored("cider", ["a cat", "a dog"], [["a cat"], ["the bird"]])
    assert found.each[0] > 0 == found.each[1]
    assert found.score == found.each[0] / 2
    assert SCORERS["cider"].best == 10


@pytest.mark.parametrize("rule", SCORERS)
def test_nothing_to_score_is_refused(rule):
    with pytest.raises(ValueError, match="There is no answer to score"):
        scored(rule, [], [])


def test_every_rule_of_the_schema_is_there():
    from typing import get_args, get_type_hints

    assert set(get_args(get_type_hints(EvaluationConfig)["score"])) == {"none", *SCORERS}
