"""Losses and measures of several dense tasks against plain statements of them."""

import math

import pytest
import torch
from torch.nn import functional as F

from vpeft.dense import multitask_losses as losses
from vpeft.dense.multitask_metrics import Classes, Meter, Normals, Saliency, relative_improvement

ALONE = {"semseg": 67.21, "human_parts": 61.93, "saliency": 62.35, "normals": 17.97}


@pytest.mark.parametrize(
    ("found", "published"),
    [((70.87, 59.54, 65.47, 17.47), 2.34), ((70.24, 59.12, 64.75, 17.40), 1.74), ((67.90, 59.84, 65.40, 16.60), 2.55)],
    ids=["polyhistor", "polyhistor_lite", "mtlora"],
)
def test_relative_improvement_is_the_published_one(found, published):
    assert relative_improvement(dict(zip(ALONE, found, strict=True)), ALONE) == pytest.approx(published, abs=0.012)


def test_less_is_better_for_normals_alone():
    assert relative_improvement({"normals": 9.0}, {"normals": 10.0}) == pytest.approx(10)
    assert relative_improvement({"semseg": 9.0}, {"semseg": 10.0}) == pytest.approx(-10)
    with pytest.raises(ValueError, match="no value for saliency"):
        relative_improvement({"saliency": 1.0}, {"semseg": 2.0})
    with pytest.raises(ValueError, match="single_task of semseg is 0"):
        relative_improvement({"semseg": 1.0}, {"semseg": 0})


def test_miou_counts_pixels_of_all_images_and_absent_classes_as_zero():
    label = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 0, 0]]])
    answer = torch.tensor([[[0, 1, 1, 0]], [[1, 1, 0, 1]]])
    meter = Meter(Classes(3))
    for i in range(2):
        meter.update(F.one_hot(answer[i : i + 1], 3).permute(0, 3, 1, 2).float(), label[i : i + 1], torch.tensor([i]))
    # class 0: 2 of {4 true, 2 said} -> 2/4; class 1: 3 of {3, 5} -> 3/5; class 2 is nowhere
    assert meter.values(meter.total())["miou"] == pytest.approx(100 * (2 / 4 + 3 / 5 + 0) / 3)


def test_saliency_is_the_best_threshold_of_means_over_images():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 1, 6, 7, generator=generator)
    label = (torch.rand(5, 6, 7, generator=generator) > 0.5).long()
    label[3] = 0
    meter = Meter(Saliency())
    meter.update(logits[:2], label[:2], torch.arange(2))
    meter.update(logits[2:], label[2:], torch.arange(2, 5))
    once = meter.total()
    meter.update(logits[:1], label[:1], torch.arange(1))  # fills up the share of a process
    assert torch.equal(meter.total(), once)

    ious, fs = [], []
    for step in range(15):
        t = 0.2 + 0.05 * step
        iou, precision, recall = [], [], []
        for z, truth in zip(logits[:, 0].sigmoid(), label.bool(), strict=True):
            found = z > t
            hits = (found & truth).sum().item()
            either = (found | truth).sum().item()
            iou.append(hits / either if either else 1)
            precision.append(hits / (found.sum().item() + 1e-12))
            recall.append(hits / (truth.sum().item() + 1e-12))
        p, r = sum(precision) / 5, sum(recall) / 5
        ious.append(sum(iou) / 5)
        fs.append(2 * p * r / (p + r + 1e-12))
    assert meter.values(meter.total())["miou"] == pytest.approx(100 * max(ious), abs=1e-6)
    assert meter.values(meter.total())["max_f"] == pytest.approx(100 * max(fs), abs=1e-6)


def test_angles_are_in_degrees_and_only_where_there_is_a_truth():
    turn = math.radians(30)
    output = torch.tensor([0.0, 2 * math.sin(turn), 2 * math.cos(turn)]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    meter = Meter(Normals())
    meter.update(output, torch.zeros_like(label), torch.tensor([0]))
    assert math.isnan(meter.values(meter.total())["angle"])
    meter.update(output, label, torch.tensor([0]))
    assert meter.values(meter.total())["angle"] == pytest.approx(30, abs=1e-3)


def test_losses_are_their_formulas():
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(2, 3, 4, 5, generator=generator)
    label = torch.randint(0, 3, (2, 4, 5), generator=generator)
    label[0, 0] = 255
    torch.testing.assert_close(losses.classes(output, label), F.cross_entropy(output, label, ignore_index=255))

    truth = (label == 1).long()
    truth[label == 255] = 255
    logits, valid = output[:, :1], truth != 255
    w = (truth[valid] == 0).float().mean()
    each = F.binary_cross_entropy_with_logits(logits[:, 0][valid], truth[valid].float(), reduction="none")
    weights = torch.where(truth[valid] == 1, w, 1 - w)
    torch.testing.assert_close(losses.saliency(logits, truth), (weights * each).mean())

    normal = F.normalize(torch.randn(2, 3, 4, 5, generator=generator), dim=1)
    normal[:, :, 0] = 0
    expected = (F.normalize(output, dim=1) - normal)[:, :, 1:].abs().mean()
    torch.testing.assert_close(losses.normals(output, normal), expected)


def test_labels_that_are_all_ignored_give_a_finite_loss_and_gradient():
    for task, channels in (("semseg", 3), ("human_parts", 3), ("saliency", 1), ("normals", 3)):
        output = torch.randn(1, channels, 2, 2, requires_grad=True)
        label = torch.zeros(1, 3, 2, 2) if task == "normals" else torch.full((1, 2, 2), 255)
        loss = losses.LOSSES[task](output, label)
        loss.backward()
        assert loss.item() == 0, task
        assert torch.isfinite(output.grad).all(), task


def test_a_split_without_images_is_refused():
    with pytest.raises(ValueError, match=r"the evaluated split has no images\. Evaluate data that has some"):
        Meter(Normals()).total()
