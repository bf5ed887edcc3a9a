"""Losses of mask classification beyond their golden values."""

import torch

from vpeft.dense.mask_losses import MaskLoss, masks_of
from vpeft.dense.san import Proposals


def proposals(queries: int = 4, classes: int = 3) -> Proposals:
    return Proposals(
        torch.randn(2, queries, 6, 8).requires_grad_(), torch.randn(2, queries, classes + 1).requires_grad_()
    )


def test_a_label_map_gives_one_mask_a_class_and_none_for_what_is_ignored():
    mask = torch.tensor([[2, 2, 255], [0, 2, 0]])
    masks, labels = masks_of(mask)
    assert labels.tolist() == [0, 2]
    assert masks.tolist() == [[[False, False, False], [True, False, True]], [[True, True, False], [False, True, False]]]


def test_a_class_numbered_255_is_one_where_another_number_is_ignored():
    _, labels = masks_of(torch.tensor([[255, 65535]]), ignore=65535)
    assert labels.tolist() == [255]


def test_a_batch_in_which_all_is_ignored_has_a_finite_loss_and_gradient():
    one = proposals()
    empty, none = masks_of(torch.full((12, 16), 255))
    total, terms = MaskLoss(3, points=10)([one], [empty, empty], [none, none])
    total.backward()
    assert total.isfinite()
    assert terms["mask"] == 0
    assert one.logits.grad is not None
    assert one.logits.grad.isfinite().all()


def test_one_image_without_masks_does_not_disturb_the_other():
    masks, labels = masks_of(torch.tensor([[0, 1]]).repeat_interleave(8, 0).repeat_interleave(8, 1))
    empty, none = masks_of(torch.full((8, 16), 255))
    total, _ = MaskLoss(3, points=10)([proposals()], [masks, empty], [labels, none])
    assert total.isfinite()


def test_perfect_proposals_cost_next_to_nothing():
    target = torch.zeros(8, 8, dtype=torch.int64)
    target[:, 4:] = 1
    masks, labels = masks_of(target)
    sure = torch.where(masks, 40.0, -40.0)[None]
    logits = torch.tensor([[[40.0, 0, 0], [0, 40.0, 0]]])
    torch.manual_seed(0)
    _, terms = MaskLoss(2, points=64, importance=0.0)([Proposals(sure.flip(1), logits.flip(1))], [masks], [labels])
    assert terms["class"] < 1e-4
    assert terms["dice"] < 0.15


def test_the_count_of_masks_is_that_of_all_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(5))
    count = MaskLoss(3, points=10)._count([torch.zeros(3)], torch.device("cpu"))
    assert count == 4


def test_half_precision_proposals_are_compared_in_single_precision():
    masks, labels = masks_of(torch.zeros(8, 8, dtype=torch.int64))
    half = Proposals(torch.randn(1, 4, 6, 8, dtype=torch.bfloat16), torch.randn(1, 4, 4, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = MaskLoss(3, points=10)([half], [masks], [labels])
    assert total.dtype == torch.float32
