from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vpeft.tasks import learning
from vpeft.tasks.classification import Classification
from vpeft.tasks.segmentation import Segmentation


@pytest.mark.parametrize("task", [Classification, Segmentation])
@pytest.mark.parametrize("start", ["on_validation_epoch_start", "on_test_epoch_start"])
def test_every_evaluation_begins_with_the_statistics_of_the_first_process(monkeypatch, task, start):
    def broadcast(tensor: torch.Tensor, source: int) -> None:
        assert source == 0
        tensor.fill_(7)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    tuned = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    before = tuned[0].get_parameter("weight").detach().clone()
    trainer: Any = SimpleNamespace(world_size=2)
    stand_in = SimpleNamespace(trainer=trainer, tuned=tuned, _areas=SimpleNamespace(reset=lambda: None))
    getattr(task, start)(stand_in)
    assert all((statistics == 7).all() for statistics in tuned.buffers())
    assert torch.equal(tuned[0].get_parameter("weight"), before)


def test_one_process_shares_nothing():
    trainer: Any = SimpleNamespace(world_size=1)
    tuned: Any = nn.BatchNorm2d(2)
    learning.share_statistics(trainer, tuned)
    assert (tuned.running_var == 1).all()


def test_values_are_logged_in_the_steps_that_are_written():
    written = []
    rate = SimpleNamespace(param_groups=[{"name": "head", "lr": 0.5}])
    for step in range(9):
        trainer = SimpleNamespace(global_step=step, log_every_n_steps=3, optimizers=[rate])
        module: Any = SimpleNamespace(trainer=trainer, log_dict=lambda values, batch_size: written.append(values))
        learning.log_step(module, {"train/loss": torch.tensor(float(step))}, 4)
    assert written == [{"train/loss": torch.tensor(float(step)), "lr/head": 0.5} for step in (2, 5, 8)]


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [
        ("32-true", 1.0, True),
        ("32-true", None, True),
        ("bf16-mixed", None, True),
        ("bf16-mixed", 1.0, False),  # Lightning refuses it
        ("16-mixed", None, False),  # methods would read scaled gradients
    ],
)
def test_adamw_is_one_kernel_where_lightning_lets_it(precision, clip, fused):
    trainer: Any = SimpleNamespace(precision=precision, gradient_clip_val=clip)
    assert learning.fusing(trainer) is fused
