"""Fresh processes, and what tensors hold."""

import os
import signal

import pytest
import torch

from vpeft.bench.process import fresh, held, reason


def identity():
    return os.getpid()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_measurement_has_a_process_of_its_own():
    assert len({fresh(identity), fresh(identity), os.getpid()}) == 3


def test_a_process_that_dies_is_told_and_what_it_raises_comes_back():
    with pytest.raises(RuntimeError, match=r"died.*try a smaller batch"):
        fresh(kill)
    with pytest.raises(ValueError, match="invalid literal"):
        fresh(int, "x")


def test_held_is_the_highest_and_not_the_sum(capfd):
    def run():
        a = torch.ones(1000, 1000)
        del a
        return torch.ones(500, 1000)

    assert 4_000_000 <= held(run, torch.device("cpu")) < 4_100_000
    assert capfd.readouterr().err == ""


def test_a_reason_is_one_line():
    assert reason(RuntimeError("\nfirst\nsecond")) == "RuntimeError: first"
    assert reason(KeyError()) == "KeyError"
