"""Mean IoU by both published definitions, from counts that are exact and counted once."""

import pytest
import torch
import torch.distributed

from tests.golden import golden
from vpeft.dense.iou import Areas, scores


def areas(prediction, mask, classes, index=None):
    counted = Areas(classes)
    counted.add(prediction, mask, torch.arange(len(mask)) if index is None else index)
    return counted


def test_measures_equal_those_of_mmseg():
    g = golden("mmseg_iou")
    found = scores(areas(g["iou/prediction"], g["iou/mask"], 6).total())
    for name, values in {"IoU": found.iou, "Acc": found.acc}.items():
        there = torch.tensor([float("nan") if value is None else value for value in values])
        torch.testing.assert_close(there, g[f"iou/{name}"], equal_nan=True, atol=1e-6, rtol=0)
    for name, value in {"mIoU": found.miou, "mAcc": found.macc, "aAcc": found.aacc}.items():
        assert value == pytest.approx(g[f"iou/{name}"].item(), abs=1e-6), name


def test_a_class_that_is_nowhere_labelled_counts_zero_or_is_left_out():
    mask = torch.tensor([[[0, 0, 1, 1]]])
    prediction = torch.tensor([[[0, 2, 1, 1]]])  # class 2 is predicted only, class 3 is nowhere
    total = areas(prediction, mask, 4).total()
    zero, ignore = scores(total, absent="zero"), scores(total, absent="ignore")
    assert zero.iou == [0.5, 1.0, 0.0, None]
    assert ignore.iou == [0.5, 1.0, None, None]
    assert (zero.miou, ignore.miou) == (0.5, 0.75)
    assert zero.acc == ignore.acc == [0.5, 1.0, None, None]
    assert (zero.macc, zero.aacc) == (0.75, 0.75)


def test_ignored_pixels_are_in_no_count():
    mask = torch.tensor([[[0, 255], [255, 1]]])
    prediction = torch.tensor([[[0, 1], [0, 1]]])
    assert areas(prediction, mask, 2).total().tolist() == [[1, 1], [1, 1], [1, 1]]


def test_counts_are_whole_numbers_beyond_single_precision():
    large = torch.tensor([[2**24, 0], [2**24 + 1, 0], [2**24, 1]])
    assert scores(large).iou[0] == 2**24 / (2**24 + 1)
    assert areas(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64), 2).total().dtype == (
        torch.int64
    )


def test_an_image_that_comes_twice_counts_once():
    torch.manual_seed(0)
    mask, prediction = torch.randint(0, 3, (3, 4, 4)), torch.randint(0, 3, (3, 4, 4))
    once = areas(prediction, mask, 3).total()
    twice = areas(prediction[[0, 1, 2, 0]], mask[[0, 1, 2, 0]], 3, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(twice.total(), once)


def test_processes_are_put_together_and_a_shared_image_counts_once(monkeypatch):
    torch.manual_seed(0)
    mask, prediction = torch.randint(0, 3, (3, 4, 4)), torch.randint(0, 3, (3, 4, 4))
    here = areas(prediction[[0, 2]], mask[[0, 2]], 3, torch.tensor([0, 2]))
    there = areas(prediction[[1, 0]], mask[[1, 0]], 3, torch.tensor([1, 0]))

    def gather(everywhere, own):
        everywhere[:] = [own, there._seen]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    gathered = here.total()
    monkeypatch.undo()
    assert torch.equal(gathered, areas(prediction, mask, 3).total())


@pytest.mark.parametrize(
    ("prediction", "mask", "sentence"),
    [
        ([[[0, 1]]], [[[0, 7]]], "A mask holds class 7, and there are 3, counted from 0; 255 is ignored"),
        ([[[0, 4]]], [[[0, 1]]], "A prediction holds class 4, and there are 3"),
        ([[[0]]], [[[0, 1]]], "Resize the logits to the mask"),
    ],
)
def test_what_is_no_class_or_no_prediction_of_this_mask_is_refused(prediction, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        areas(torch.tensor(prediction), torch.tensor(mask), 3)


def test_nothing_to_measure_is_said():
    with pytest.raises(ValueError, match="the evaluated split has no images"):
        Areas(3).total()
    mask = torch.full((1, 2, 2), 255)
    with pytest.raises(ValueError, match="every pixel of every mask is ignored"):
        scores(areas(torch.zeros_like(mask), mask, 3).total())
