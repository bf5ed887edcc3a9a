import time
from types import SimpleNamespace

import pytest
import torch

from vpeft.tasks.timing import FETCH, Timing, Waiting, forget_peak, peak_memory


def epoch(seconds, waiting):
    return {"seconds": seconds, "steps": 10.0, "images": 100.0, "waiting": waiting}


def test_waiting_counts_fetches_and_the_start_of_an_epoch():
    waiting = Waiting()
    waiting.reset()
    time.sleep(0.02)
    waiting.start(f"[loop].{FETCH}")
    waiting.stop(f"[loop].{FETCH}")
    assert waiting.seconds == pytest.approx(0.02, abs=0.015)
    waiting.start("optimizer_step")
    time.sleep(0.02)
    waiting.stop("optimizer_step")
    before = waiting.seconds
    with waiting.profile(FETCH):
        time.sleep(0.02)
    assert waiting.seconds - before == pytest.approx(0.02, abs=0.015)


def test_the_first_epoch_is_start_up():
    timing = Timing(Waiting())
    timing.epochs = [epoch(100, 90), epoch(10, 1), epoch(10, 2), epoch(20, 1)]
    assert timing.summary() == {"step_seconds": 1.0, "images_per_second": 10.0, "data_wait_share": 0.1}


def test_one_epoch_says_nothing_about_waiting():
    timing = Timing(Waiting())
    timing.epochs = [epoch(10, 5)]
    assert timing.summary() == {"step_seconds": 1.0, "images_per_second": 10.0, "data_wait_share": None}
    timing.epochs = []
    assert set(timing.summary().values()) == {None}


def test_evaluation_is_not_training_time():
    timing, trainer = Timing(Waiting()), SimpleNamespace(world_size=1, num_training_batches=1)
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda values: None)
    timing.on_train_epoch_start(trainer, module)
    timing.on_train_batch_end(trainer, module, None, {"index": torch.zeros(8)}, 0)
    timing.on_validation_start(trainer, module)
    time.sleep(0.05)
    timing.on_validation_end(trainer, module)
    timing.on_train_epoch_end(trainer, module)
    assert timing.epochs[0]["seconds"] < 0.03
    assert timing.epochs[0]["images"] == 8


def test_an_epoch_resumed_in_its_middle_is_left_out():
    timing, trainer = Timing(Waiting()), SimpleNamespace(world_size=1, num_training_batches=1)
    timing.on_train_epoch_end(trainer, SimpleNamespace())
    assert timing.epochs == []


def test_what_was_measured_before_a_resume_counts():
    first = Timing(Waiting())
    first.epochs = [epoch(10, 5)]
    state = first.state_dict() | {"elapsed": 100.0}
    second = Timing(Waiting())
    second.load_state_dict(state)
    assert second.epochs == [epoch(10, 5)]
    assert second.elapsed() == pytest.approx(100, abs=1)


def test_peak_memory_of_the_process_is_in_bytes():
    held = torch.ones(50 * 2**20, dtype=torch.uint8)
    assert held.numel() < peak_memory(torch.device("cpu")) < 2**40


def test_a_run_in_an_old_process_does_not_inherit_the_peak_of_an_earlier_one():
    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    with_it = peak_memory(torch.device("cpu"))
    del held
    forget_peak()
    assert peak_memory(torch.device("cpu")) < with_it - 150 * 2**20
