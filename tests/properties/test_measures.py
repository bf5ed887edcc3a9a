"""Averages, statistics, and measures that are counted image by image."""

from __future__ import annotations

import itertools
import random
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from vpeft.dense.iou import Areas, scores
from vpeft.metrics import evaluate
from vpeft.results.averages import TASKS, VTAB_GROUPS, averages
from vpeft.results.statistics import critical_difference, friedman, interval, mean_ranks, pareto
from vpeft.tasks.averaging import RunningAverage

NUMBERS = st.floats(0, 100, width=32)


@given(st.lists(NUMBERS, min_size=19, max_size=19), st.randoms(use_true_random=False))
def test_vtabs_averages_are_means_of_groups_and_of_tasks_in_any_order(values, chance) -> None:
    per_task = dict(zip(TASKS, values, strict=True))
    found = averages(per_task)
    for group, tasks in VTAB_GROUPS.items():
        assert found.groups[group] == pytest.approx(fmean(per_task[task] for task in tasks))
    assert found.group_mean == pytest.approx(fmean(v for v in found.groups.values() if v is not None))
    assert found.task_mean == pytest.approx(fmean(values))
    order = list(per_task)
    chance.shuffle(order)
    assert averages({task: per_task[task] for task in order}) == found
    gone = order[0]
    partly = averages({task: value for task, value in per_task.items() if task != gone})
    assert (partly.group_mean, partly.task_mean) == (None, None)
    assert [group for group, value in partly.groups.items() if value is None] == [
        group for group, tasks in VTAB_GROUPS.items() if gone in tasks
    ]


@given(st.lists(NUMBERS, min_size=2, max_size=8), st.floats(-50, 50), st.floats(0.1, 9))
def test_an_interval_follows_shift_and_scale_and_no_order(values, shift, scale) -> None:
    half = interval(values)
    assert half is not None
    assert half >= 0
    assert half == pytest.approx(interval(values[::-1]), abs=1e-6)
    assert interval([scale * value + shift for value in values]) == pytest.approx(scale * half, rel=1e-6, abs=1e-6)


def test_an_interval_holds_the_mean_of_its_law_nineteen_times_of_twenty() -> None:
    chance = random.Random(0)
    samples = [[chance.gauss(3, 2) for _ in range(3)] for _ in range(2000)]
    held = fmean(abs(fmean(sample) - 3) <= (interval(sample) or 0) for sample in samples)
    assert abs(held - 0.95) < 0.015  # three standard deviations of 2000 draws


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=2, max_size=6), st.permutations(range(3)))
def test_ranks_add_up_and_go_with_their_methods(table, order) -> None:
    ranks = mean_ranks(table)
    assert sum(ranks) == pytest.approx(6)
    assert mean_ranks([[row[i] for i in order] for row in table]) == pytest.approx([ranks[i] for i in order])
    found = friedman(table)
    assert 0 <= found.p <= 1
    assert found.chi2 == pytest.approx(friedman([[row[i] for i in order] for row in table]).chi2, abs=1e-9)
    assert critical_difference(3, len(table)) > 0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points) -> None:
    def beaten(one):
        return any(o[0] <= one[0] and o[1] >= one[1] and o != one for o in points)

    assert {points[i] for i in pareto(points)} == {one for one in points if not beaten(one)}


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 10**6), st.data())
def test_miou_is_the_same_image_by_image_in_any_order_and_at_once(classes, count, seed, data) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.randint(classes, (count, 4, 5), generator=draw)
    mask[torch.rand(mask.shape, generator=draw) < 0.2] = 255
    assume((mask != 255).any())
    predicted = torch.randint(classes, mask.shape, generator=draw)
    whole, parts = Areas(classes), Areas(classes)
    whole.add(predicted, mask, torch.arange(count))
    order = data.draw(st.permutations(range(count)))
    for i in [*order, order[0]]:  # one that fills up a last batch is counted once
        parts.add(predicted[i : i + 1], mask[i : i + 1], torch.tensor([i]))
    assert torch.equal(whole.total(), parts.total())
    found = scores(whole.total(), data.draw(st.sampled_from(["zero", "ignore"])))
    assert 0 <= found.miou <= 1
    assert found.aacc == pytest.approx((predicted == mask)[mask != 255].double().mean().item())
    swap = torch.randperm(classes, generator=draw)
    other = Areas(classes)
    other.add(swap[predicted], torch.where(mask == 255, 255, swap[mask.clamp(max=classes - 1)]), torch.arange(count))
    assert scores(other.total()).miou == pytest.approx(scores(whole.total()).miou)


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 10**6))
def test_accuracy_is_the_share_of_right_images_whatever_their_order(classes, count, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(count, classes, generator=draw), torch.randint(classes, (count,), generator=draw)
    found, order = evaluate(logits, labels), torch.randperm(count, generator=draw)
    again = evaluate(logits[order], labels[order])
    assert (found.accuracy, found.images) == ((logits.argmax(1) == labels).double().mean().item(), count)
    assert torch.equal(found.confusion, again.confusion)
    assert found.loss == pytest.approx(again.loss, rel=1e-5, abs=1e-6)
    assert found.ece == pytest.approx(again.ece, abs=1e-5)
    weighted = [(hit or 0) * int(total) for hit, total in zip(found.per_class, found.confusion.sum(1), strict=True)]
    assert sum(weighted) == pytest.approx(found.accuracy * count)


@given(st.floats(0.01, 0.999), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12))
def test_a_running_average_is_the_weighted_sum_of_what_was_and_swaps_back(decay, values) -> None:
    module: Any = nn.Linear(1, 1, bias=False)
    module.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    start, average = module.weight.item(), RunningAverage(decay)
    trainer: Any = SimpleNamespace(global_step=0)
    average.on_fit_start(trainer, module)
    for step, value in enumerate(values, start=1):
        module.weight.data.fill_(value)
        for _ in range(2):  # a batch whose gradient is only summed counts for nothing
            trainer.global_step = step
            average.on_train_batch_end(trainer, module, None, None, 0)
    weights = [decay ** len(values), *((1 - decay) * decay**i for i in reversed(range(len(values))))]
    expected = np.dot(weights, [start, *values])
    average.swap(module)
    assert module.weight.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert min(start, *values) - 1e-4 <= module.weight.item() <= max(start, *values) + 1e-4
    average.swap(module)
    assert module.weight.item() == pytest.approx(values[-1])
    assert len(average.average or []) == 1


def test_the_groups_share_no_task() -> None:
    assert not any(set(a) & set(b) for a, b in itertools.combinations(VTAB_GROUPS.values(), 2))
    assert sorted(task for tasks in VTAB_GROUPS.values() for task in tasks) == sorted(TASKS)
