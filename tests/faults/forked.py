"""Stands for `subprocess` in `vpeft.suite.local`: workers are forked from the suite's process and not started anew.

A start takes seven seconds of a CPU for the imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from subprocess import PIPE, TimeoutExpired
from typing import IO, NoReturn

from vpeft import cli
from vpeft.suite import worker

__all__ = ["PIPE", "Popen", "TimeoutExpired"]


class Popen:
    """What `vpeft.suite.local` uses of `subprocess.Popen`."""

    def __init__(
        self,
        words: Sequence[str],
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        pass_fds: Collection[int],
        start_new_session: bool,
    ) -> None:
        assert list(words[1:3]) == ["-m", "vpeft.suite.worker"]
        reading, writing = os.pipe()
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            _become([reading, stdout.fileno(), stderr.fileno()], env, pass_fds, words[3:])
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def send_signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(files: Sequence[int], env: Mapping[str, str], kept: Collection[int], words: Sequence[str]) -> NoReturn:
    try:
        os.setsid()
        for target, file in enumerate(files):
            os.dup2(file, target)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number not in kept:  # such as the ends of the pipes of other workers
                with contextlib.suppress(OSError):
                    os.close(number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        sys.stdin = os.fdopen(0, closefd=False)
        os.environ.clear()
        os.environ.update(env)
        sys.argv[:] = ["worker", *words]
        cli.run(worker.main)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)
