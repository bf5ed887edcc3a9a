from types import SimpleNamespace

import torch

from tests.tasks.test_classification import make_task
from vpeft.metrics import evaluate
from vpeft.tasks.averaging import BestOnVal, RunningAverage


def trained(task):
    return [parameter for parameter in task.parameters() if parameter.requires_grad]


def step(average, task, number):
    with torch.no_grad():
        for parameter in trained(task):
            parameter.add_(1)
    average.on_train_batch_end(SimpleNamespace(global_step=number), task, None, None, 0)


def test_average_of_trained_parameters_alone():
    task, average = make_task(), RunningAverage(0.75)
    start = [parameter.detach().clone() for parameter in trained(task)]
    average.on_fit_start(SimpleNamespace(), task)
    step(average, task, 1)
    step(average, task, 2)
    # p = s, s + 1, s + 2 with weights 0.75^2, 0.75 * 0.25, 0.25
    expected = [value + 0.75 * 0.25 + 2 * 0.25 for value in start]
    assert average.average is not None
    torch.testing.assert_close(average.average, expected)
    assert len(expected) == len(trained(task)) < len(list(task.parameters()))


def test_a_batch_without_a_step_does_not_count():
    task, average = make_task(), RunningAverage(0.5)
    average.on_fit_start(SimpleNamespace(), task)
    step(average, task, 1)
    assert average.average is not None
    before = [value.clone() for value in average.average]
    step(average, task, 1)
    assert all(torch.equal(old, new) for old, new in zip(before, average.average, strict=True))


def test_evaluation_sees_the_average_and_training_goes_on_without_it():
    task, average = make_task(), RunningAverage(0.5)
    average.on_fit_start(SimpleNamespace(), task)
    step(average, task, 1)
    current = [parameter.detach().clone() for parameter in trained(task)]
    average.on_validation_start(SimpleNamespace(), task)
    torch.testing.assert_close([p.detach() for p in trained(task)], [value - 0.5 for value in current])
    average.on_validation_end(SimpleNamespace(), task)
    assert all(torch.equal(a, b) for a, b in zip(trained(task), current, strict=True))


def test_the_first_of_equally_good_epochs_is_kept():
    task, best = make_task(), BestOnVal()
    right, wrong = torch.eye(3), torch.eye(3).roll(1, 0)
    for epoch, logits in enumerate([wrong, right, right, wrong]):
        with torch.no_grad():
            task.tuned.head.linear.bias.fill_(epoch)
        task.evaluation = evaluate(logits, torch.arange(3))
        best.on_validation_end(SimpleNamespace(current_epoch=epoch), task)
    assert (best.epoch, best.score) == (2, 1.0)
    assert best.delta["head.linear.bias"].tolist() == [1, 1, 1]
    assert set(best.delta) == set(task.tuned.delta())
