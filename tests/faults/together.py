"""Several processes that do the same at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

_FORK = multiprocessing.get_context("fork")
_LIMIT = 300  # seconds: for a machine on which much else runs


def at_once(do: Callable[[], Any], count: int = 2) -> list[Any]:
    """What a function returns, or what it raises, in so many processes that start it together."""
    start, answers = _FORK.Barrier(count), _FORK.Queue()

    def run() -> None:
        start.wait(_LIMIT)
        try:
            answers.put(do())
        except Exception as error:
            answers.put(error)

    processes = [_FORK.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=_LIMIT) for _ in processes]
    for process in processes:
        process.join(_LIMIT)
    return found


@contextmanager
def another(manager: Callable[[], Any]) -> Iterator[BaseProcess]:
    """Another process that has entered a context manager and stays in it until it is killed."""
    entered = _FORK.Event()

    def stay() -> None:
        with manager():
            entered.set()
            _FORK.Event().wait()

    process = _FORK.Process(target=stay, daemon=True)
    process.start()
    assert entered.wait(_LIMIT)
    try:
        yield process
    finally:
        process.kill()
        process.join(_LIMIT)
