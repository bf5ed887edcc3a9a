"""Connectors, packed rows and conversations of `mllm`."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.connectors.avg_pool import AvgPool
from mllm.connectors.pixel_shuffle import PixelShuffle
from mllm.sample import MARKER, Sample, Turn
from mllm.segments import Segment, joined, with_images
from mllm.sequence import IGNORED, encode, prompt
from mllm.templates import find
from tests.mllm.batches import batch, encoded
from tests.mllm.models import vlm
from tests.mllm.shapes import shapes
from tests.mllm.vocabularies import CHATML, by_bytes

TOKENIZER = by_bytes(CHATML)
MODEL = vlm().eval()
# Whatever people type: no lone surrogates, which UTF-8 does not know, and no mark of an image.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.sampled_from(
    [
        " a\n",
        "</s>",
        "<|im_end|>",
        "<s>USER:",
        "ASSISTANT: no",
        "a\u0301e\u200d🏳️‍🌈",
        "\u202eabc",
        "{}",
        "{0}%s",
        "\\n",
        "ﬁ ﷺ",
    ]
)
WORDS = TEXT.filter(lambda text: bool(text.strip()) and MARKER not in text)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 5))
def test_pixel_shuffle_moves_every_number_to_one_place_and_can_be_undone(rows, columns, factor, prefix, dim) -> None:
    grid = (rows * factor, columns * factor)
    connector = PixelShuffle(*shapes(dim, 8, grid, prefix), factor=factor)
    count = prefix + grid[0] * grid[1]
    x = torch.arange(2.0 * count * dim).reshape(2, count, dim)
    found = connector.shuffle(x)
    assert found.shape == (2, connector.tokens, dim * factor**2)
    assert connector(x).shape == (2, connector.tokens, 8)
    blocks = found.reshape(2, rows, columns, factor, factor, dim).transpose(2, 3)
    assert torch.equal(blocks.reshape(2, -1, dim), x[:, prefix:])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2), st.data())
def test_pooled_tokens_are_as_many_as_said_and_their_mean_that_of_the_patches(rows, columns, prefix, data) -> None:
    side = data.draw(st.integers(1, min(rows, columns)))
    connector = AvgPool(*shapes(3, 4, (rows, columns), prefix), tokens=side**2, depth=1)
    connector.layers = torch.nn.Identity()
    x = torch.randn(2, prefix + rows * columns, 3, generator=torch.Generator().manual_seed(1))
    found = connector(x)
    assert found.shape == (2, side**2, 3)
    assert found.amax() <= x[:, prefix:].amax() + 1e-6
    if rows % side == 0 and columns % side == 0:
        torch.testing.assert_close(found.mean(1), x[:, prefix:].mean(1))
    if (side, side) == (rows, columns):
        torch.testing.assert_close(found, x[:, prefix:])


SAMPLES = st.lists(st.text("abc#AB", min_size=1, max_size=6).map(lambda text: f"{text}$"), min_size=1, max_size=4)


@given(st.lists(SAMPLES, min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=30)
def test_a_packed_row_has_every_token_once_and_no_sample_sees_another(rows, tokens) -> None:
    found = batch(*rows, tokens=tokens)
    segments, mask = found["segments"], MODEL._blocks(found["segments"], 0, torch.float32)
    for i, row in enumerate(rows):
        at = 0
        for number, text in enumerate(row, start=1):
            one = encoded(text, tokens)
            here = slice(at, at + len(one))
            for key, value in (("input_ids", one.ids), ("labels", one.labels), ("image_mask", one.image_mask)):
                assert torch.equal(found[key][i, here], value)
            assert (segments[i, here] == number).all()
            assert found["position_ids"][i, here].tolist() == list(range(len(one)))
            at += len(one)
        rest = slice(at, None)
        assert (segments[i, rest] == 0).all()
        assert (found["labels"][i, rest] == IGNORED).all()
        assert not found["attention_mask"][i, rest].any()
        length = segments.shape[1]
        seen = mask[i, 0] if mask.dtype is torch.bool else mask[i, 0] == 0
        for a in range(at):
            for b in range(length):
                assert bool(seen[a, b]) == (b <= a and bool(segments[i, a] == segments[i, b]))
    assert found["image_row"].tolist() == [
        i for i, row in enumerate(rows) for text in row for _ in range(text.count("#"))
    ]


@given(
    st.sampled_from(["llava_v1", "flamingo", "bare", "chat"]), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)
)
def test_what_is_trained_is_what_the_assistant_says_and_its_ends(name, rounds) -> None:
    template = find(name)
    turns = tuple(turn for q, a in rounds for turn in (Turn("user", q), Turn("assistant", a)))
    sample = Sample("7", (), turns)
    whole = encode(sample, template, TOKENIZER, 1, 1 << 20)
    trained = whole.labels != IGNORED
    assert torch.equal(whole.labels[trained], whole.ids[trained])
    stop = template.stop(TOKENIZER)
    parts, current = [], []
    for token in whole.ids[trained].tolist():
        if token == stop:
            parts.append(TOKENIZER.decode(current))
            current = []
        else:
            current.append(token)
    assert not current  # an answer ends with its end, and a text cannot bring that token in
    answers = [answer for _, answer in rounds]
    if name == "chat":  # a tokenizer's own template may trim
        assert [part.strip() for part in parts] == [answer.strip() for answer in answers]
    else:
        assert parts == [f"{'' if name == 'flamingo' else ' '}{answer}" for answer in answers]
    begun = prompt(sample, template, TOKENIZER, 1)
    assert torch.equal(whole.ids[: len(begun)], begun.ids)
    assert (begun.labels == IGNORED).all()
    assert int((whole.labels[len(begun) :] != IGNORED).sum()) == len(whole) - len(begun)


@given(st.lists(st.sampled_from([MARKER, "a", "\n", "<image", ">", " "]), max_size=8).map("".join))
def test_a_text_with_images_is_cut_at_their_marks_and_nowhere_else(text) -> None:
    parts = joined(with_images(text))
    assert "".join(MARKER if part.image else part.text for part in parts) == text
    assert sum(part.image for part in parts) == text.count(MARKER)
    assert all(part.image or part.text for part in parts)
    assert joined([*parts, Segment()]) == parts
