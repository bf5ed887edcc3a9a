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
