"""Captions say what the questions leave no doubt about."""

import pytest

from mllm.data.vqa_captions import COLOURS, captions, read
from mllm.sample import Held, Sample, Turn


def asked(*pairs: tuple[str, str]) -> list[Sample]:
    image = Held("one", b"")
    return [Sample(str(i), (image,), (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "caption"),
    [
        ([("<image>\nwhat color is the circle?", "blue")], "a blue circle"),
        ([("what shape is present?", "circle"), ("is there a red shape?", "yes")], "a red circle"),
        ([("what is the teal shape?", "triangle")], "a teal triangle"),
        ([("is there not a circle?", "no"), ("is no red shape present?", "no")], "a red circle"),
        (
            [("is no circle present?", "yes"), ("is there a triangle?", "no"), ("is a red shape present?", "yes")],
            "a red rectangle",
        ),
        (
            [
                ("what shape is present?", "circle"),
                *((f"is there a {colour} shape?", "no") for colour in COLOURS - {"gray"}),
            ],
            "a gray circle",
        ),
    ],
)
def test_an_answer_says_what_is_there_or_what_is_not(pairs, caption):
    (sample,) = captions(asked(*pairs))
    assert [turn.text for turn in sample.turns] == ["<image>", caption]


@pytest.mark.parametrize("pair", [("what shape is present?", "circle"), ("is there a red shape?", "no")])
def test_an_image_that_may_show_several_things_is_left_out(pair):
    assert not captions(asked(pair))


def test_the_published_set_has_24_captions_in_every_split():
    parts = read()
    assert {part: len(samples) for part, samples in parts.items()} == {"train": 3222, "val": 356, "test": 888}
    for samples in parts.values():
        assert len({sample.turns[1].text for sample in samples}) == 24
