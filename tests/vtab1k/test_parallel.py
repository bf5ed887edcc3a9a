"""Work is shared out in order, and a fault or a killed worker is told."""

from __future__ import annotations

import os
import signal

import pytest

from vpeft.vtab1k.parallel import in_chunks


def _odd(number: int) -> int:
    if number == 150:
        raise ValueError("150 is not odd.")
    return 2 * number + 1


def _die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_keep_the_order_of_the_items(workers: int) -> None:
    assert [one for chunk in in_chunks(_odd, range(130), workers) for one in chunk] == [2 * i + 1 for i in range(130)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_ends_the_work_after_what_was_made_before_it(workers: int) -> None:
    made: list[int] = []
    chunks = in_chunks(_odd, range(400), workers)
    for _ in range(3):
        made += next(chunks)
    with pytest.raises(ValueError, match="150 is not odd"):
        next(chunks)
    assert made == [2 * i + 1 for i in range(150)]


def test_nothing_to_do_is_done() -> None:
    assert list(in_chunks(_odd, [], 2)) == []


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"A worker was killed, .* use fewer workers"):
        list(in_chunks(_die, range(3), 1))


def _fault(number: int) -> int:
    raise RuntimeError("This image is of no use.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_work_is_not_called_a_killed_worker(workers: int) -> None:
    with pytest.raises(RuntimeError, match="This image is of no use") as raised:
        list(in_chunks(_fault, range(3), workers))
    assert "was killed" not in str(raised.value)
