"""Calls a reader of outside files and holds it to what such a reader may do.

It gives a value, or refuses in a sentence of the project's own (`vpeft.cli` decides what that is). It may not take
minutes or gigabytes, write outside its folder, start a process, open a connection or load a class from a pickle.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import _ExecutorManagerThread
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpeft import cli

SECONDS, BYTES = 20, 3 << 30  # of this process's own time, and more memory than it has
REFUSED = object()
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
_FORBIDDEN += ("pickle.find_class", "pty.spawn", "code.__new__")
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.chmod", "os.rmdir", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Breach(BaseException):
    """What no reader may do; no `except Exception` hides it."""


class _Watch:
    """The one hook of this process, which cannot be taken away again: it looks only while there is a folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "pickle.find_class" and isinstance(threading.current_thread(), _ExecutorManagerThread):
            return  # what a process of the reader's own sends back
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {given!r:.300}")
        elif event in _CHANGES or (event == "open" and isinstance(given[2], int) and given[2] & _WRITING):
            for path in given if event in ("os.rename", "os.link", "os.symlink") else given[:1]:
                if isinstance(path, (str, bytes, os.PathLike)) and not self._allowed(os.fsdecode(path)):
                    self.seen.append(f"{event} {path!r}")

    def _allowed(self, path: str) -> bool:
        if "__pycache__" in path or path == os.devnull:  # what an import of Python's own writes
            return True
        return os.path.realpath(path).startswith(f"{self.folder}{os.sep}") or path == str(self.folder)


_WATCH = _Watch()


@functools.cache
def _hook() -> None:
    sys.addaudithook(_WATCH)


def outcome(read: Callable[[], Any], folder: Path) -> Any:
    """What `read` gives, or REFUSED where it says in a sentence what is wrong.

    Args:
        read: Reads what lies in the folder.
        folder: The only place where it may write.

    Raises:
        AssertionError: It did anything else.
    """
    try:
        with _limited(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return read()
            except Exception as error:
                if not refusal(error):
                    shown = "".join(traceback.format_exception(error))
                    raise AssertionError(f"neither a value nor a sentence: {shown[-3000:]}") from error
                return REFUSED
    except Breach as breach:
        raise AssertionError(str(breach)) from None


def refusal(error: BaseException) -> bool:
    """Whether an error is the sentence of a tool: one that the project raised itself, or a file the system refuses."""
    return isinstance(error, (ValueError, OSError, RuntimeError)) and bool(str(error).strip()) and _worded(error)


def _worded(error: BaseException) -> bool:
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    key = (frame.f_code.co_filename, line, type(error), isinstance(error, OSError) and error.filename is not None)
    if key not in _KNOWN:
        _KNOWN[key] = cli._worded(error)
    return _KNOWN[key]


_KNOWN: dict[Any, bool] = {}


@contextmanager
def _limited(folder: Path) -> Iterator[None]:
    _hook()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, _hung)
    _WATCH.folder, _WATCH.seen = folder.resolve(), []
    resource.setrlimit(resource.RLIMIT_AS, (_size() + BYTES, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _WATCH.folder = None
    if _WATCH.seen:
        raise Breach(f"a reader did what it may not: {'; '.join(_WATCH.seen[:3])}")


def _hung(*_: Any) -> None:
    raise Breach(f"a reader computed for more than {SECONDS} seconds")


def _size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
