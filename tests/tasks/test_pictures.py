"""Which images of a test are kept for TensorBoard."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from vpeft.tasks import pictures


class Noted:
    def __init__(self):
        self.shown = []

    def keep(self, batch, outputs, row):
        return int(batch["index"][row]), outputs[row]

    def show(self, task, kept, board, step):
        self.shown.append((task, kept, step))


def trained(loaders, tmp_path, world=1, rank=0):
    logger = TensorBoardLogger(str(tmp_path))
    return SimpleNamespace(
        test_dataloaders=loaders, world_size=world, is_global_zero=rank == 0, logger=logger, global_step=7
    )


@pytest.mark.parametrize(("world", "wanted"), [(1, [0, 4, 9]), (2, [0, 4, 8])])
def test_images_are_evenly_spaced_over_what_the_first_process_sees(tmp_path, world, wanted):
    noted = Noted()
    callback, trainer = pictures.TestPictures(noted, 3), trained(SimpleNamespace(dataset=range(10)), tmp_path, world)
    callback.on_test_start(trainer, "task")
    for first in range(0, 10, 5):
        index = torch.arange(first, first + 5)[(-first) % world :: world]
        callback.on_test_batch_end(trainer, "task", index * 10, {"index": index}, 0)
    callback.on_test_end(trainer, "task")
    assert noted.shown == [("task", [[(at, 10 * at) for at in wanted]], 7)]


def test_every_loader_has_its_own_and_a_small_one_is_shown_whole(tmp_path):
    noted = Noted()
    loaders = [SimpleNamespace(dataset=range(2)), SimpleNamespace(dataset=range(5))]
    callback, trainer = pictures.TestPictures(noted, 3), trained(loaders, tmp_path)
    for _ in range(2):  # a second test begins anew
        callback.on_test_start(trainer, "task")
        for number, loader in enumerate(loaders):
            for at in loader.dataset:
                callback.on_test_batch_end(trainer, "task", [number], {"index": torch.tensor([at])}, 0, number)
    callback.on_test_end(trainer, "task")
    assert noted.shown == [("task", [[(0, 0), (1, 0)], [(0, 1), (2, 1), (4, 1)]], 7)]


def test_other_processes_show_nothing(tmp_path):
    noted = Noted()
    pictures.TestPictures(noted, 3).on_test_end(trained([], tmp_path, 2, rank=1), "task")
    assert not noted.shown
