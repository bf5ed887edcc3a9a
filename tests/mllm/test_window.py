"""Which part of what was looked at a forward covers."""

import copy
import pickle

import pytest
import torch

from mllm.shapes import Layout
from mllm.window import Kept, Rows, Window

VALUES = torch.tensor([[0, 1, 1], [0, 0, 2]])


def window():
    layout = Layout(VALUES > 0, VALUES, torch.tensor([0, 1, 1]))
    return Window(torch.zeros(3, 4, 6), layout)


def tokens(rows, columns):
    return torch.zeros(rows, columns, 16)


def test_a_prompt_is_covered_as_it_is_and_generated_text_has_nothing_or_the_last():
    w = window()
    assert torch.equal(w.take(VALUES, tokens(2, 3), 0), VALUES)
    assert torch.equal(w.take(VALUES, tokens(2, 1), 3), torch.tensor([[0], [0]]))
    assert torch.equal(w.take(VALUES, tokens(2, 1), 7, lasts=True), torch.tensor([[1], [2]]))
    assert torch.equal(w.take(VALUES, tokens(2, 5), 0, lasts=True), torch.tensor([[0, 1, 1, 1, 1], [0, 0, 2, 2, 2]]))
    assert (w.start(tokens(2, 1), 3), w.start(tokens(2, 3), 0)) == (3, 0)


def test_a_prompt_may_come_in_pieces():
    w = window()
    assert torch.equal(w.take(VALUES, tokens(2, 2), 0), VALUES[:, :2])
    assert torch.equal(w.take(VALUES, tokens(2, 1), 2), VALUES[:, 2:])


def test_virtual_tokens_stand_before_the_columns():
    in_the_cache, in_the_sequence = window(), window()
    assert torch.equal(in_the_cache.take(VALUES, tokens(2, 3), 2, lasts=True), VALUES)
    assert torch.equal(in_the_cache.take(VALUES, tokens(2, 1), 5, lasts=True), VALUES[:, 2:])
    padded = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 2]])
    assert torch.equal(in_the_sequence.take(VALUES, tokens(2, 5), 0, lasts=True), padded)
    assert in_the_sequence.start(tokens(2, 1), 5) == 3


def test_beams_stand_beside_each_other():
    assert torch.equal(window().take(VALUES, tokens(6, 3), 0), VALUES[[0, 0, 0, 1, 1, 1]])
    assert window().beams(tokens(6, 3)) == 3
    with pytest.raises(ValueError, match=r"runs 3 sequences, and a connector looked at 2. Call look"):
        window().beams(tokens(3, 3))


def test_every_image_needs_its_features():
    layout = Layout(VALUES > 0, VALUES, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="2 features of images and a layout of 3 images; it needs one for each"):
        Window(torch.zeros(2, 4, 6), layout)


def test_what_all_layers_ask_for_is_made_once_a_forward():
    w, made = window(), []
    for first, columns in ((0, 3), (0, 3), (3, 1), (3, 1), (4, 1), (0, 3)):
        assert w.once(tokens(2, columns), first, lambda: made.append(0) or len(made)) == len(made)
    assert len(made) == 4


def test_rows_are_parted_and_joined():
    go = torch.tensor([[False, True, True], [True, False, False]])
    rows = Rows.of(go)
    x = torch.arange(6)
    assert x[rows.stay].tolist() == [0, 4, 5]
    assert x[rows.go].tolist() == [1, 2, 3]
    assert torch.equal(torch.cat([x[rows.stay], x[rows.go]])[rows.order], x)


def test_what_is_kept_is_not_copied():
    kept: Kept[torch.Tensor] = Kept("nothing was looked at")
    with pytest.raises(RuntimeError, match="nothing was looked at"):
        kept.get()
    kept.value = torch.ones(1, requires_grad=True) * 2
    for twin in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        with pytest.raises(RuntimeError, match="nothing was looked at"):
            twin.get()
    assert kept.take().item() == 2
    assert kept.value is None
