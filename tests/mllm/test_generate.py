"""Answers are those of the model, whatever else is in the batch and however they are asked for."""

import pytest
import torch

from mllm import generate as generation
from mllm.generate import Decoding, answers, generate, stream
from tests.mllm.batches import batch, pictures
from tests.mllm.models import CONNECTORS, NAMES, vlm

LORA = {"name": "lora", "r": 2}
PREFIX = {"name": "prefix", "tokens": 3}
TEXTS = ["ab#c", "efghijkl", "#m#nop", "q"]
by_connector = pytest.mark.parametrize("connector", CONNECTORS, ids=NAMES)
EIGHT = Decoding(max_new_tokens=8)


def one_by_one(model, texts, decoding, shown):
    found, taken = [], 0
    for text in texts:
        count = text.count("#")
        alone = batch(text, tokens=model.connector.tokens, side="left", images=shown[taken : taken + count])
        found += generate(model, alone, decoding)
        taken += count
    return found


def by_hand(model, text, shown, length):
    """The likeliest words, the whole sequence computed anew for each, without a cache."""
    found = []
    inputs = batch(text, tokens=model.connector.tokens, side="left", images=shown)
    for _ in range(length):
        word = int(model(inputs)[0, -1].argmax())
        if word in model.about.ends:
            break
        found.append(word)
        one = torch.ones(1, 1, dtype=torch.long)
        inputs |= {
            "input_ids": torch.cat([inputs["input_ids"], one * word], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], one], 1),
            "position_ids": torch.cat([inputs["position_ids"], inputs["position_ids"][:, -1:] + 1], 1),
            "image_mask": torch.cat([inputs["image_mask"], one < 0], 1),
            "time": torch.cat([inputs["time"], inputs["time"][:, -1:]], 1),
        }
    return found


@by_connector
def test_greedy_words_are_the_likeliest_ones(connector):
    model = vlm(connector, LORA).eval()
    shown = pictures(1)
    inputs = batch("ab#c", tokens=model.connector.tokens, side="left", images=shown)
    assert generate(model, inputs, EIGHT) == [by_hand(model, "ab#c", shown, 8)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
@pytest.mark.parametrize("method", [LORA, PREFIX], ids=["lora", "prefix"])
def test_greedy_words_are_the_likeliest_ones_in_every_family_behind_a_prefix_too(family, method):
    model = vlm(method=method, family=family).eval()
    shown = pictures(1)
    assert generate(model, batch("ab#c", side="left", images=shown), EIGHT) == [by_hand(model, "ab#c", shown, 8)]


@by_connector
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_of_mixed_lengths_is_answered_as_its_rows_are_alone(connector, beams):
    model = vlm(connector, LORA)
    shown, decoding = pictures(3), Decoding(max_new_tokens=8, beams=beams)
    together = generate(model, batch(*TEXTS, tokens=model.connector.tokens, side="left", images=shown), decoding)
    assert together == one_by_one(model, TEXTS, decoding, shown)
    assert len({tuple(row) for row in together}) > 1
    assert model.training, "it goes on training as before"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
@pytest.mark.parametrize("method", [LORA, PREFIX], ids=["lora", "prefix"])
def test_every_family_answers_a_batch_as_its_rows_alone(family, method, beams):
    model = vlm(method=method, family=family)
    shown, decoding = pictures(3), Decoding(max_new_tokens=8, beams=beams)
    together = generate(model, batch(*TEXTS, side="left", images=shown), decoding)
    assert together == one_by_one(model, TEXTS, decoding, shown)


@by_connector
def test_text_alone_is_answered_in_a_batch_as_alone(connector):
    model = vlm(connector)
    texts = ["ab", "cdefg"]
    together = generate(model, batch(*texts, tokens=model.connector.tokens, side="left"), EIGHT)
    assert together == one_by_one(model, texts, EIGHT, pictures(0))


def test_the_image_decides_what_is_answered():
    model = vlm()
    first, second = (generate(model, batch("ab#c", side="left", images=pictures(n)[:1]), EIGHT) for n in (1, 2))
    assert first != second


def test_sampling_follows_from_its_seed_and_leaves_the_generator_alone():
    model = vlm()
    inputs = batch("ab#c", "de", side="left")
    state = torch.get_rng_state()
    drawn = [generate(model, inputs, Decoding(max_new_tokens=8, sample=True, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    narrow = generate(model, inputs, Decoding(max_new_tokens=8, sample=True, top_p=1e-6))
    assert narrow == generate(model, inputs, EIGHT)


def test_a_models_own_settings_do_not_count():
    model = vlm()
    inputs = batch("ab#c", side="left")
    expected = generate(model, inputs, EIGHT)
    own = model.language.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 2.0, 5.0
    assert generate(model, inputs, EIGHT) == expected


def test_answers_end_at_the_end_token_and_at_those_that_a_template_adds():
    model = vlm()
    inputs = batch("ab#c", side="left")
    words = generate(model, inputs, EIGHT)[0]
    assert len(words) >= 3, "the tiny model says something"
    assert generate(model, inputs, EIGHT, ends=[words[2]]) == [words[: words.index(words[2])]]


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it():
    model = vlm()
    inputs = batch("ab#c", "de", side="left")
    whole = answers(model, inputs, EIGHT)
    stop = whole[0].split()[2]
    cut = answers(model, inputs, Decoding(max_new_tokens=8, stop=(stop,)))
    assert cut == [text.partition(stop)[0].strip() for text in whole]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_streamed_pieces_are_the_answer(half):
    model = vlm(method={"name": "bitfit", "create": True, "norms": True}, half=half)
    inputs = batch("ab#c", side="left")
    pieces = list(stream(model, inputs, EIGHT))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == answers(model, inputs, EIGHT)[0]


def test_a_stream_ends_before_a_stop_text():
    model = vlm()
    inputs = batch("ab#c", side="left")
    stop = answers(model, inputs, EIGHT)[0].split()[3]
    decoding = Decoding(max_new_tokens=8, stop=(stop,))
    assert "".join(stream(model, inputs, decoding)).strip() == answers(model, inputs, decoding)[0]


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "c#", "x", "d##"], ("##",), ["ab", "c", "#x", "d"]),
        (["a#", "#b"], ("##",), ["a"]),
        (["a#"], ("##",), ["a", "#"]),
        (["a", "b"], (), ["a", "b"]),
    ],
)
def test_what_may_be_a_stop_text_is_held_back_until_it_is_known(pieces, stops, expected):
    assert list(generation._until_stop(iter(pieces), stops)) == expected


def test_a_stream_that_is_left_stops_generating():
    model = vlm()
    calls = []
    model.language.lm_head.register_forward_hook(lambda *_: calls.append(1))
    reader = stream(model, batch("ab#c", side="left"), Decoding(max_new_tokens=100), [])
    next(reader)
    reader.close()
    assert len(calls) < 100
    assert model.training


def test_an_error_in_the_thread_is_raised_where_the_answer_is_read():
    with pytest.raises(ValueError, match="The batch has 9 image positions"):
        list(stream(vlm(), batch("ab#c", tokens=9, side="left"), EIGHT))


def test_padding_on_the_right_is_refused():
    with pytest.raises(ValueError, match="padded on the right, so that answers would begin behind the padding"):
        generate(vlm(), batch("ab#c", "d"))


def test_several_prompts_or_beams_are_not_streamed():
    with pytest.raises(ValueError, match="One answer at a time is streamed, without beams; 2 prompts and 1 beams"):
        next(stream(vlm(), batch("a", "b", side="left")))
    with pytest.raises(ValueError, match="1 prompts and 2 beams"):
        next(stream(vlm(), batch("a", side="left"), Decoding(beams=2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give 1 or more"),
        ({"beams": 0}, "beams is 0; give 1 or more"),
        ({"temperature": 0}, "temperature is 0; give more than 0"),
        ({"top_p": 0}, "top_p is 0; give more than 0 and at most 1"),
    ],
)
def test_settings_that_choose_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Decoding(**options)
