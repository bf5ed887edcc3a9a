"""Answers are compared in the form that VQAv2's rules give them."""

import pytest

from mllm.normalise import normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two Dogs.", "2 dogs"),
        ("a red, round ball", "red round ball"),
        ("an apple", "apple"),
        ("NONE", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("4.5", "4.5"),
        ("U.S.A.", "usa"),
        ("100,978", "100978"),
        ("1, 2", "1 2"),
        ("2:50 pm", "2:50 pm"),
        ("girl's hat", "girl's hat"),
        ("dont know", "don't know"),
        ("its", "its"),
        ("were", "were"),
        ("theyre", "they're"),
        ("t-shirt_size/XL?", "t shirt size xl"),
        ("  yes \n", "yes"),
        ("A.", "a"),
        ("", ""),
    ],
)
def test_an_answer_is_compared_by_vqav2s_rules(text, expected):
    assert normalised(text) == expected


def test_normalising_twice_changes_nothing():
    once = normalised("The 1,000 cats -- a U.S. team's, dont they?")
    assert normalised(once) == once == "1000 cats us team's don't they"
