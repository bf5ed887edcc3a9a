from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mllm.data import rendered
from mllm.data.images import read as read_image
from mllm.data.rendered import HELD_OUT, PLACES, VOCABULARY, Part, described, questions, read, scene
from mllm.sample import faults


def test_the_language_has_28_words_and_is_enough() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 28
    for pairs in (False, True):
        for i in range(200):
            things = scene("all", i, pairs)
            said = [described(things), *(f"{question} {answer}" for _, question, answer in questions(things))]
            assert set(" ".join(said).split()) <= set(VOCABULARY)


def test_the_tokenizer_knows_every_word_by_its_place() -> None:
    tokenizer = rendered.tokenizer()
    assert tokenizer(" ".join(VOCABULARY[4:])).input_ids == [1, *range(4, 28)]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3)


@pytest.mark.parametrize("pairs", [False, True])
def test_held_out_combinations_are_in_their_part_alone(pairs: bool) -> None:
    for part in ("train", "val", "test", "held_out"):
        seen = {(thing.colour, thing.shape) for i in range(300) for thing in scene(part, i, pairs)}
        assert seen == set(HELD_OUT) if part == "held_out" else (len(seen) == 12 and not seen & set(HELD_OUT))
    everything = {(thing.colour, thing.shape) for i in range(300) for thing in scene("all", i, pairs)}
    assert len(everything) == 16


def test_chance_is_one_in_four_for_every_question_about_one_shape() -> None:
    answers: dict[str, Counter[str]] = {}
    for i in range(2000):
        for kind, _, answer in questions(scene("train", i, False)):
            answers.setdefault(kind, Counter())[answer] += 1
    assert set(answers) == {"colour", "shape", "place"}
    for found in answers.values():
        assert len(found) == 4
        assert max(found.values()) < 0.3 * 2000


def test_a_shape_is_drawn_in_its_colour_and_quadrant() -> None:
    parts: dict[Part, int] = {"train": 40}
    samples = {sample.id: sample for sample in read(False, parts)["train"]}
    for i in range(40):
        (thing,) = scene("train", i, False)
        pixels = np.asarray(read_image(samples[f"train/{i}/colour"].images[0])).astype(int)
        assert pixels.shape == (32, 32, 3)
        bright = pixels.max(-1) > 110
        rows, columns = np.nonzero(bright)
        assert PLACES[2 * int(rows.mean() > 15.5) + int(columns.mean() > 15.5)] == PLACES[thing.place]
        colour = pixels[bright].mean(0)
        nearest = min(rendered.COLOURS, key=lambda name: abs(np.array(rendered.COLOURS[name]) - colour).sum())
        assert nearest == thing.colour


def test_questions_about_two_shapes_are_answered_by_the_scene() -> None:
    red, blue = rendered.Thing("red", "circle", 0), rendered.Thing("blue", "square", 1)
    asked = {question: answer for _, question, answer in questions((red, blue))}
    assert asked == {
        "what is the colour of the circle ?": "red",
        "what is the colour of the square ?": "blue",
        "what is the colour of the left shape ?": "red",
        "what is the left shape ?": "circle",
        "what is the colour of the right shape ?": "blue",
        "what is the right shape ?": "square",
    }
    assert described((red, blue)) == "a red circle at top left and a blue square at top right ."
    for i in range(100):
        first, second = scene("train", i, True)
        assert (first.colour != second.colour, first.shape != second.shape, first.place != second.place) == (True,) * 3


def test_samples_follow_from_seed_part_and_number() -> None:
    parts: dict[Part, int] = {"train": 5, "test": 5}
    once, again, other = (read(True, parts, seed) for seed in (0, 0, 1))
    assert once == again
    assert {image for s in once["train"] for image in s.images}.isdisjoint(
        {image for samples in (once["test"], other["train"]) for s in samples for image in s.images}
    )
    assert not [fault for samples in once.values() for sample in samples for fault in faults(sample)]
