"""Read MATLAB files with SciPy in a process of its own, which is not Python all through: damaged bytes can end it."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# A file and the variables that are wanted of it, by default all -> their values.
Load = Callable[..., dict[str, Any]]
# The largest file that is read, SVHN's, takes two seconds and not half a GB; damaged sizes ask for anything.
SECONDS, BYTES = 120, 4 << 30
_STATM = Path("/proc/self/statm")


@contextmanager
def apart(advice: str) -> Iterator[Load]:
    """`load_mat` in one other process, for as many files as are given to it.

    What it gives raises ValueError where a file is missing or damaged. After a file at which
    the process ended, the next one starts another.

    Args:
        advice: What to do with a damaged file, for its error.

    Raises:
        RuntimeError: No process can be started, by what is called.
    """
    pools: list[ProcessPoolExecutor] = []

    def load(file: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
        if not pools:
            pools.append(_started())
        try:
            return pools[0].submit(load_mat, file, advice, names).result()
        except ValueError as error:
            raise ValueError(str(error)) from error  # of this process, or it would be no sentence of the tools
        except BrokenProcessPool as error:
            pools.pop().shutdown()
            raise ValueError(
                f"{file} is not a whole MATLAB file (SciPy's reader crashed on it, or took over {SECONDS} seconds); "
                f"{advice}."
            ) from error

    try:
        yield load
    finally:
        for pool in pools:
            pool.shutdown()


def _started() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_limit)
    try:
        pool.submit(int).result()  # before a file, which would be blamed
    except BrokenProcessPool as error:
        raise RuntimeError(
            "MATLAB files are read in a process of their own, and none could be started. In a script of your own, put "
            "what it does under `if __name__ == '__main__':`, and keep it in a file."
        ) from error
    return pool


def load_mat(file: Path, advice: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of a MATLAB file, or some of its variables.

    Raises:
        ValueError: The file is missing or damaged.
    """
    from scipy.io import loadmat

    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # ends the process
    try:
        return loadmat(str(file), variable_names=names)
    except Exception as error:  # scipy raises whatever its parser meets
        reason = str(error) or type(error).__name__  # a MemoryError says nothing
        raise ValueError(f"{file} is not a whole MATLAB file ({reason:.400}); {advice}.") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limit() -> None:
    if not _STATM.exists():  # another system than Linux
        return
    # What the script above imports is in this process too, and a torch for GPUs is large.
    most = int(_STATM.read_text().split()[0]) * resource.getpagesize() + BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
