from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm.collate import Side, collate, instructions
from mllm.sample import Sample, Turn
from mllm.sequence import IGNORED, Encoded, encode
from mllm.templates import find
from tests.mllm.vocabularies import by_bytes, by_words

TOKENS = 3


def sequence(images: int, words: int, name: str = "7") -> Encoded:
    turns = (Turn("user", "<image>" * images + "What colour"), Turn("assistant", "red " * words + "blue"))
    sample = Sample(name, tuple(Path(f"{name}{i}.png") for i in range(images)), turns, "talks.json")
    return encode(sample, find("flamingo_vqa"), by_bytes(), TOKENS, 999)


ONE, TWO, NONE = sequence(1, 2), sequence(2, 5, "8"), sequence(0, 1, "9")
PIXELS = torch.zeros((3, 3, 4, 4), dtype=torch.uint8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_on_the_side_that_is_asked_for_and_counts_for_nothing(side: Side) -> None:
    batch = collate([[ONE], [TWO], [NONE]], PIXELS, TOKENS, side)
    length = max(len(one) for one in (ONE, TWO, NONE))
    for row, one in enumerate((ONE, TWO, NONE)):
        at = slice(0, len(one)) if side == "right" else slice(length - len(one), length)
        mask = torch.zeros(length, dtype=torch.bool)
        mask[at] = True
        assert torch.equal(batch["attention_mask"][row], mask.long())
        for key, values in (("input_ids", one.ids), ("labels", one.labels), ("time", one.time)):
            assert torch.equal(batch[key][row][mask], values)
        assert torch.equal(batch["image_mask"][row][mask], one.image_mask)
        assert batch["position_ids"][row][mask].tolist() == list(range(len(one)))
        for key, value in {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "image_mask": 0, "time": 0}.items():
            assert (batch[key][row][~mask] == value).all(), key
    assert batch["image_row"].tolist() == [0, 1, 1]
    assert "segments" not in batch


def test_a_tokenizer_without_a_pad_token_needs_none() -> None:
    tokenizer = by_words("What colour red blue Question: Short answer:", pad=False)
    assert tokenizer.pad_token is None
    sample = Sample("7", (), (Turn("user", "What colour"), Turn("assistant", "red")))
    short = encode(sample, find("bare"), tokenizer, 1, 99)
    batch = collate([[short], [replace(short, ids=short.ids[:2], labels=short.labels[:2], time=short.time[:2],
        image_mask=short.image_mask[:2])]], PIXELS[:0], 1, "right")  # fmt: skip
    assert batch["input_ids"][1, 2:].eq(0).all()
    assert batch["attention_mask"][1].tolist() == [1, 1, *[0] * (len(short) - 2)]


def test_packed_samples_are_told_apart_and_begin_at_position_zero() -> None:
    batch = collate([[ONE, NONE], [TWO]], PIXELS, TOKENS, "right", packed=True)
    first = [1] * len(ONE) + [2] * len(NONE)
    second = [1] * len(TWO)
    length = max(len(first), len(second))
    assert batch["segments"].tolist() == [row + [0] * (length - len(row)) for row in (first, second)]
    assert torch.equal(batch["segments"] > 0, batch["attention_mask"].bool())
    assert batch["position_ids"][0, : len(first)].tolist() == [*range(len(ONE)), *range(len(NONE))]
    assert torch.equal(batch["input_ids"][0, len(ONE) : len(first)], NONE.ids)
    assert batch["time"][0, len(ONE) : len(first)].eq(0).all()  # counted within the sample
    assert batch["image_row"].tolist() == [0, 1, 1]


def test_a_batch_without_images_has_none() -> None:
    batch = collate([[NONE], [NONE]], PIXELS[:0], TOKENS, "right")
    assert batch["images"].shape == (0, 3, 4, 4)
    assert batch["image_row"].shape == (0,)
    assert not batch["image_mask"].any()


def test_positions_of_images_may_stand_for_their_pixels() -> None:
    batch = collate([[ONE], [TWO]], torch.tensor([5, 2, 2]), TOKENS, "right")
    assert batch["image_index"].tolist() == [5, 2, 2]
    assert "images" not in batch


def test_images_and_their_places_are_counted() -> None:
    with pytest.raises(ValueError, match=r"talks.json: sample '8' has 6 image positions, and 2 images of 4 tokens"):
        collate([[TWO]], PIXELS[:2], 4, "right")
    with pytest.raises(ValueError, match=r"from talks.json: sample '7' on has places for 3 images and 2 are given"):
        collate([[ONE], [TWO]], PIXELS[:2], TOKENS, "right")


def test_a_connector_that_reads_gets_the_question_of_every_image() -> None:
    tokenizer = by_bytes()
    long = sequence(1, 1)
    long = replace(long, instructions=("a photo of a cat on a blue chair",))
    read = instructions([[TWO, NONE], [long]], tokenizer)
    rows = [tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(read["text_ids"], read["text_mask"], strict=True)]
    assert rows == ["<s>What colour", "<s>What colour", "<s>a photo of a cat on a blue chair"]
    assert read["text_ids"][0][~read["text_mask"][0].bool()].eq(0).all()
    assert instructions([[long]], tokenizer, max_length=4)["text_ids"].shape == (1, 4)
    assert instructions([[NONE]], tokenizer)["text_ids"].shape == (0, 1)
