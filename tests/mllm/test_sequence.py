from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from mllm.sample import Sample, Turn, faults
from mllm.sequence import IGNORED, encode, encode_all, prompt
from mllm.templates import find
from tests.mllm.vocabularies import CHATML, LLAMA2, by_bytes, by_pieces, by_words

TURNS = (
    Turn("user", "What colour is <image>\nthe circle? "),
    Turn("assistant", "The circle is red."),
    Turn("user", "And in <image>? a cat"),
    Turn("assistant", " a blue\nchair "),
    Turn("user", "Why {}?"),
    Turn("assistant", "two"),
)
IMAGES = (Path("a.png"), Path("b.png"))
SAMPLE = Sample("7", IMAGES, TURNS, "talks.json")
ONE = replace(SAMPLE, images=IMAGES[:1], turns=TURNS[:2])
MANY = ["llava_v1", "blip2", "flamingo", "flamingo_vqa", "bare", "chat"]


def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    words = " ".join(turn.text for turn in TURNS) + " USER: ASSISTANT: Question: Answer: user assistant"
    return {"bytes": by_bytes(CHATML), "pieces": by_pieces(LLAMA2), "words": by_words(words)}


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
@pytest.mark.parametrize("name", [*MANY, "plain", "blip2_caption"])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_every_prompt_is_the_beginning_of_the_training_sequence(kind: str, name: str, tokens: int) -> None:
    if kind == "words" and name in ("chat", "blip2", "plain", "blip2_caption"):
        return  # this tokenizer has no chat template and no line break, which test_templates holds
    tokenizer, template = tokenizers()[kind], find(name)
    rounds = range(1, 4 if name in MANY else 2)
    for last in rounds:
        turns = TURNS[: 2 * last]
        images = IMAGES[: sum(turn.text.count("<image>") for turn in turns)]
        sample = Sample("7", images, turns)
        whole = encode(sample, template, tokenizer, tokens, 4096)
        for asked in rounds[:last]:
            if "blip2" in name and sum("<image>" in t.text for t in turns[: 2 * asked - 1]) < len(images):
                continue  # all images stand in front, so a prompt before the second one has fewer
            part = replace(sample, turns=turns[: 2 * asked - 1])
            part = replace(part, images=images[: sum(turn.text.count("<image>") for turn in part.turns)])
            begun = prompt(part, template, tokenizer, tokens)
            for field in ("ids", "image_mask", "time"):
                assert torch.equal(getattr(whole, field)[: len(begun)], getattr(begun, field)), field
            assert whole.labels[len(begun)] == whole.ids[len(begun)]  # the answer begins where the prompt ends
            assert (begun.labels == IGNORED).all()


@pytest.mark.parametrize("name", MANY)
def test_labels_are_the_answers_and_their_ends_and_nothing_else(name: str) -> None:
    tokenizer, template = by_bytes(CHATML), find(name)
    whole = encode(SAMPLE, template, tokenizer, 4, 4096)
    trained = whole.labels != IGNORED
    assert torch.equal(whole.labels[trained], whole.ids[trained])
    assert not (trained & whole.image_mask).any()
    stop = tokenizer.decode([template.stop(tokenizer)])
    answers = [turn.text for turn in TURNS[1::2]]
    space = " " if name in ("llava_v1", "blip2", "bare") else ""
    assert tokenizer.decode(whole.labels[trained]) == "".join(f"{space}{text}{stop}" for text in answers)


def test_images_take_their_positions_and_count_time() -> None:
    whole = encode(SAMPLE, find("flamingo"), by_bytes(), 3, 4096)
    runs = torch.diff(whole.image_mask.int(), prepend=torch.zeros(1)).eq(1).sum()
    assert (int(whole.image_mask.sum()), int(runs)) == (6, 2)
    assert (whole.ids[whole.image_mask] == 0).all()
    assert whole.time[whole.image_mask].tolist() == [1, 1, 1, 2, 2, 2]
    assert whole.time[0] == 0  # BOS is before every image
    assert whole.time[-1] == 2
    none = encode(SAMPLE, find("flamingo"), by_bytes(), 0, 4096)
    assert torch.equal(none.time, whole.time[~whole.image_mask])
    assert encode(ONE, find("blip2"), by_bytes(), 3, 4096).time.unique().tolist() == [1]


@pytest.mark.parametrize("name", ["llava_v1", "chat"])
def test_many_samples_are_written_as_each_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("mllm.sequence._AT_ONCE", 2)
    tokenizer, template = by_bytes(CHATML), find(name)
    samples = [SAMPLE, ONE, replace(SAMPLE, id="8"), replace(ONE, images=(), turns=TURNS[4:]), SAMPLE]
    many = list(encode_all(iter(samples), template, tokenizer, 3, 140))
    for sample, found in zip(samples, many, strict=True):
        alone = encode(sample, template, tokenizer, 3, 140)
        for field in ("ids", "labels", "image_mask", "time"):
            assert torch.equal(getattr(found, field), getattr(alone, field))
        assert (found.images, found.instructions, found.where) == (alone.images, alone.instructions, alone.where)
    with pytest.raises(ValueError, match="sample '7' has an empty turn"):
        list(encode_all([SAMPLE, replace(ONE, turns=(TURNS[0], Turn("assistant", "")))], template, tokenizer, 3, 140))


def test_an_image_comes_with_the_text_of_its_turn() -> None:
    whole = encode(SAMPLE, find("flamingo"), by_bytes(), 2, 4096)
    assert whole.instructions == ("What colour is \nthe circle?", "And in ? a cat")
    assert whole.images == IMAGES


def test_text_cannot_bring_special_tokens_in() -> None:
    tokenizer = by_bytes(CHATML)
    turns = (Turn("user", "<image>a</s>"), Turn("assistant", "b</s><|im_end|>c"))
    for name in ("llava_v1", "chat"):
        whole = encode(replace(ONE, turns=turns), find(name), tokenizer, 1, 4096)
        stop = find(name).stop(tokenizer)
        assert (whole.labels == stop).sum() == 1
        assert whole.labels[-1] == stop
        assert "b</s><|im_end|>c" in tokenizer.decode(whole.ids)


def test_text_is_cut_at_the_end_and_images_never() -> None:
    tokenizer, template = by_bytes(), find("llava_v1")
    whole = encode(SAMPLE, template, tokenizer, 4, 4096)
    end = int(whole.image_mask.nonzero()[-1]) + 1
    for length in (len(whole), len(whole) - 1, end):
        cut = encode(SAMPLE, template, tokenizer, 4, length)
        for field in ("ids", "labels", "image_mask", "time"):
            assert torch.equal(getattr(cut, field), getattr(whole, field)[:length])
        assert cut.image_mask.sum() == 8
    for length in (end - 1, end - 4, end - 10):
        with pytest.raises(
            ValueError, match=rf"talks.json: sample '7': image 2 of 2 would end behind position {length}"
        ):
            encode(SAMPLE, template, tokenizer, 4, length)
    with pytest.raises(ValueError, match="image 1 of 2 would end"):
        encode(SAMPLE, template, tokenizer, 4, 3)


def test_an_image_without_positions_is_not_cut_either() -> None:
    tokenizer, template = by_bytes(), find("flamingo")
    whole = encode(SAMPLE, template, tokenizer, 0, 4096)
    second = int((whole.time == 2).nonzero()[0])
    assert len(encode(SAMPLE, template, tokenizer, 0, second + 1)) == second + 1
    with pytest.raises(ValueError, match="image 2 of 2 would end"):
        encode(SAMPLE, template, tokenizer, 0, second)


def test_a_sequence_with_no_answer_left_is_refused() -> None:
    tokenizer, template = by_bytes(), find("llava_v1")
    start = int((encode(ONE, template, tokenizer, 1, 4096).labels != IGNORED).nonzero()[0])
    assert len(encode(ONE, template, tokenizer, 1, start + 1)) == start + 1
    with pytest.raises(
        ValueError, match=rf"sample '7' has \d+ tokens, and its first answer begins behind position {start}"
    ):
        encode(ONE, template, tokenizer, 1, start)


def test_a_prompt_is_not_cut() -> None:
    length = len(prompt(SAMPLE, find("bare"), by_bytes(), 4))
    prompt(SAMPLE, find("bare"), by_bytes(), 4, length)
    with pytest.raises(ValueError, match=f"sample '7': the prompt has {length} tokens, and {length - 1} are allowed"):
        prompt(SAMPLE, find("bare"), by_bytes(), 4, length - 1)


BAD = [
    ((), 0, "no_turns", "has no turns"),
    ((TURNS[1], *TURNS[:2]), 1, "assistant_first", "starts with the assistant"),
    ((TURNS[0], TURNS[0], TURNS[1]), 2, "order", "has user and user at turns 1 and 2"),
    ((TURNS[0], Turn("assistant", " \n")), 1, "empty_turn", "has an empty turn, number 2, of the assistant"),
    ((Turn("user", ""), TURNS[1]), 0, "empty_turn", "has an empty turn, number 1, of the user"),
    (TURNS[:2], 0, "markers", "has 1 times <image> and 0 images"),
    (TURNS[:2], 2, "markers", "has 1 times <image> and 2 images"),
    ((TURNS[4], Turn("assistant", "<image>")), 0, "marker_in_answer", "has <image> in a text of the assistant"),
    ((Turn("system", "<image>"), *TURNS[:2]), 1, "marker_in_answer", "has <image> in a text of the system"),
    (TURNS[:3], 2, "no_answer", "ends with a question"),
    ((TURNS[0], Turn("system", "x"), TURNS[1]), 1, "order", "has user and system at turns 1 and 2"),
]


@pytest.mark.parametrize(("turns", "images", "kind", "words"), BAD)
def test_a_sample_with_a_fault_is_refused_with_file_and_id(
    turns: tuple[Turn, ...], images: int, kind: str, words: str
) -> None:
    sample = Sample("7", (Path("a.png"),) * images, turns, "talks.json")
    assert kind in [found for found, _ in faults(sample)]
    with pytest.raises(ValueError, match=rf"^talks.json: sample '7' {words}.*data_prep/llava.py"):
        encode(sample, find("bare"), by_bytes(), 1, 99)


def test_good_samples_have_no_fault() -> None:
    assert list(faults(SAMPLE)) == []
    assert list(faults(replace(SAMPLE, turns=(Turn("system", "x"), *TURNS)))) == []
    assert list(faults(replace(SAMPLE, turns=TURNS[:5]), answered=False)) == []


def test_what_a_template_refuses_names_the_sample() -> None:
    with pytest.raises(ValueError, match=r"talks.json: sample '7': The template plain writes 1 question"):
        encode(SAMPLE, find("plain"), by_bytes(), 1, 4096)


def test_a_conversation_without_images_has_the_ids_of_its_running_text() -> None:
    tokenizer = by_bytes(CHATML)
    sample = replace(SAMPLE, images=(), turns=(TURNS[4], TURNS[1], Turn("user", "How?"), TURNS[5]))
    chat = encode(sample, find("chat"), tokenizer, 1, 4096).ids
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    theirs = tokenizer.apply_chat_template(messages, return_dict=False)
    assert chat.tolist() == theirs[: len(chat)]
    assert tokenizer.decode(theirs[len(chat) :]) == "\n"  # behind the last answer, where nothing is learned
    llava = encode(sample, find("llava_v1", ""), tokenizer, 1, 4096).ids
    text = "USER: Why {}? ASSISTANT: The circle is red.</s>USER: How? ASSISTANT: two</s>"
    assert llava.tolist() == tokenizer(text).input_ids
