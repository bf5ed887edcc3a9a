"""Several processes on one machine: when one of them dies or falls silent, all end, and the message says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from vpeft import failures

FAILED = 1


class Ranks(L.Callback):
    """Watches the processes that Lightning started, in the one that started them, and ends them all with a sentence.

    Lightning's own observer looks every five seconds, says nothing, and kills the first process with the others, which
    nothing tells from a lack of memory; it is put to rest. Processes of torchrun and of srun have these to watch them.

    Args:
        checkpoint: What the run goes on from.
        grace: Seconds in which the first process may find out by itself that it has lost another one.
        every: Seconds between two looks.
        end: How the first process ends that hangs in an operation with a dead one.
    """

    def __init__(
        self, checkpoint: Path, grace: float = 10.0, every: float = 0.5, end: Callable[[int], Any] = os._exit
    ) -> None:
        self.checkpoint, self.grace, self.every, self.end = checkpoint, grace, every, end
        self._started: Sequence[subprocess.Popen[bytes]] = ()
        self._rank, self._world = 0, 1
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None
        self._parent = os.getppid()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._parent = os.getppid()
        self._rank, self._world = trainer.global_rank, trainer.world_size
        self._started = getattr(trainer.strategy.launcher, "procs", ())
        if self._started:
            _rest()
            self._over.clear()
            self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
            self._watcher.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nobody needs the others any more: what ends badly now must not end this one, which has files to write."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put what torch says of a lost connection into words that name the process.

        Raises:
            RuntimeError: Another process was lost.
        """
        self._over.set()
        if trainer.world_size == 1 or not failures.lost(exception):
            return
        if not self._started:
            what = f"Process {self._rank} of {self._world} (counted from 0) has lost another one of its run"
            raise RuntimeError(f"{what}. {self._whose(trainer)} {self._resume()}") from exception
        dead = self._dead(wait=3.0)
        self._kill()
        raise RuntimeError(self._words(dead)) from exception

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            if all(process.poll() == 0 for process in self._started):
                return
            dead = self._dead()
            if dead is None or self._over.wait(self.grace):
                continue
            print(f"error: {self._words(dead)}", file=sys.stderr, flush=True)
            self._kill()
            self.end(FAILED)
            return

    def _dead(self, wait: float = 0.0) -> tuple[int, subprocess.Popen[bytes]] | None:
        """Rank and process of one that has failed."""
        limit = time.monotonic() + wait
        while True:
            failed = [(rank, one) for rank, one in self._others() if one.poll()]
            if failed or time.monotonic() >= limit:
                return min(failed, key=lambda pair: pair[1].returncode) if failed else None
            time.sleep(0.05)

    def _others(self) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        """With their ranks: those of a node follow on the one that started them."""
        return enumerate(self._started, start=self._rank + 1)

    def _words(self, dead: tuple[int, subprocess.Popen[bytes]] | None) -> str:
        if dead is None:
            numbers = ", ".join(f"{rank} (pid {one.pid})" for rank, one in self._others())
            what = f"Of {self._world} processes, one of {numbers} does not answer"
            return f"{what}; all were ended. What it said last is above. {self._resume()}"
        rank, process = dead
        code = process.returncode
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        how += " (out of memory, or killed by hand)" * (code == -signal.SIGKILL)
        return (
            f"Process {rank} of {self._world} (counted from 0; pid {process.pid}) {how}, and all others were ended. "
            f"What it said is above, in the same output. {self._resume()}"
        )

    def _whose(self, trainer: L.Trainer) -> str:
        environment: Any = trainer.strategy.cluster_environment  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(environment, LightningEnvironment):
            return "What started them (torchrun, srun) says which one ended and how; its own log says why."
        first = trainer.global_rank - trainer.local_rank  # of this machine
        time.sleep(0.5)  # connections are closed before children are handed on
        if os.getppid() != self._parent:
            return f"Process {first}, which started this one, has died. What it said is above, in the same output."
        return f"Process {first} says which."

    def _kill(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()  # also one that is stopped

    def _resume(self) -> str:
        if not self.checkpoint.exists():
            return "There is no checkpoint yet; start it again."
        return f"The same command with --train.resume true goes on from {self.checkpoint}."


def _rest() -> None:
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]  # with none to look at it ends
