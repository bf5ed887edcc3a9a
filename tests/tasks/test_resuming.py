from types import SimpleNamespace

import pytest
import torch

from tests.tasks.test_classification import make_task
from vpeft.tasks.resuming import Finite


def trainer(others_step=float("inf"), others_finite=True, **changed):
    """One process of two; the other one has met a bad loss in `others_step`."""
    strategy = SimpleNamespace(
        reduce=lambda tensor, reduce_op: {"min": torch.minimum}[reduce_op](tensor, torch.tensor(others_step)),
        reduce_boolean_decision=lambda decision, all: decision and others_finite,
    )
    optimizer = SimpleNamespace(param_groups=[{"name": "head", "lr": 0.1}])
    options = {"global_step": 4, "current_epoch": 1, "max_epochs": 3, "estimated_stepping_batches": 9}
    return SimpleNamespace(strategy=strategy, optimizers=[optimizer], **(options | changed))


def end_batch(finite, where, loss):
    finite.on_train_batch_end(where, make_task(), {"loss": torch.tensor(loss)}, None, 0)


@pytest.mark.parametrize(
    ("loss", "others_step", "step"), [(float("nan"), float("inf"), 4), (1.0, 3.0, 3), (float("inf"), 2.0, 2)]
)
def test_all_processes_name_the_first_bad_step_of_any(loss, others_step, step):
    said = rf"The loss is not a finite number in optimiser step {step} of 9 \(epoch 2\), at a learning rate of 0.1 \(h"
    with pytest.raises(FloatingPointError, match=said):
        end_batch(Finite(), trainer(others_step), loss)


def test_a_finite_loss_goes_on():
    finite = Finite()
    end_batch(finite, trainer(), 1.0)
    finite.on_save_checkpoint(trainer(), make_task(), {})


def test_a_checkpoint_before_any_batch_has_no_bad_loss():
    Finite().on_save_checkpoint(trainer(), make_task(), {})


@pytest.mark.parametrize("hook", ["on_save_checkpoint", "on_test_start"])
@pytest.mark.parametrize("name", ["head.linear.weight", "head.norm.running_mean"])
def test_weights_and_statistics_are_looked_at(hook, name):
    task, rest = make_task(batch_norm=True), [{}] if hook == "on_save_checkpoint" else []
    getattr(Finite(), hook)(trainer(), task, *rest)
    task.tuned.state_dict()[name].view(-1)[0] = float("nan")
    with pytest.raises(
        FloatingPointError, match=rf"Trained weights \({name}\) are not finite numbers after step 4 of 9"
    ):
        getattr(Finite(), hook)(trainer(current_epoch=3), task, *rest)


def test_weights_of_another_process_end_this_one_too():
    with pytest.raises(FloatingPointError, match="Trained weights are not finite numbers"):
        Finite().on_test_start(trainer(others_finite=False), make_task())
