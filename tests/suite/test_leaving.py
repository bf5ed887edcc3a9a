"""How a process that works on a suite leaves on a signal."""

import os
import signal
import time

import pytest

from vpeft.suite.worker import leaving


class _Swallows:
    """A destructor, inside of which Python prints exceptions and goes on."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs here


def _lose_a_signal() -> None:
    with leaving(again=0.1):
        _Swallows()
        time.sleep(5)


def _receive_a_signal() -> None:
    with leaving(again=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_in_a_destructor_comes_again() -> None:
    with pytest.raises(SystemExit) as ended:
        _lose_a_signal()
    assert ended.value.code == 143


def test_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with pytest.raises(SystemExit):
        _receive_a_signal()
    time.sleep(0.2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
