"""The batch process alone, with a command in the place of srun."""

import os
import signal
import sys
import threading
import time

import pytest

from tests.slurm.cluster import wait
from vpeft.slurm import job

DEAF = """
import signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_srun_that_a_signal_does_not_end_is_ended_before_the_limit(tmp_path):
    task = job.Task([sys.executable, "-c", DEAF])

    def strike():
        wait((tmp_path / "deaf").exists, 60)
        task.end = int(time.time()) + job.MARGIN + 2
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=strike).start()
    assert task.run([str(tmp_path / "deaf")]) == 128 + signal.SIGKILL
    assert task.received == [signal.SIGUSR1]


@pytest.mark.parametrize("end", [0, 1])
def test_without_a_known_limit_nothing_is_ended(end):
    task = job.Task([sys.executable, "-c", ""], end)
    task._hand_on(signal.SIGUSR1, None)
    assert signal.alarm(0) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stage"], "no command is given; write it behind --"),
        (["--", sys.executable, "--version"], "This is not a job of Slurm; submit it with sbatch"),
    ],
)
def test_what_is_no_job_with_a_command_is_refused(monkeypatch, words, said):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=said):
        job.main(words)
