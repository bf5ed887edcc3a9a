"""What all tools share: how they end, and how they say what is wrong with a command line."""

from __future__ import annotations

import argparse
import ast
import errno
import linecache
import math
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vpeft import failures
from vpeft.schema import ConfigError

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
_PACKAGES = (Path(__file__).parent, Path(__file__).parents[1] / "mllm")
_FULL = "Free some space, then give the same command again; a run goes on with --train.resume true."
_CLOSED = "Choose another place, or change who may use this one."
# What to do where a disk refuses what a library was writing: the error has no name of a file then.
_DISK = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EROFS: _CLOSED}
# What to do where the system refuses a file. Without its name these may be of a port, a process or a core.
_REFUSED = _DISK | {errno.EACCES: _CLOSED, errno.EPERM: _CLOSED}
# What to do where a path is of another kind than is needed.
_MISPLACED = {
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A file stands where a folder is needed; give another place, or rename that file.",
    errno.EEXIST: "A file stands where a folder is needed; give another place, or rename that file.",
    errno.EISDIR: "It is a folder; give the path of a file.",
    errno.ENAMETOOLONG: "Give a shorter name.",
}
_WRONG_PATH = FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError
_WORDED = (ValueError, TypeError, RuntimeError, OSError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see {self.prog} --help")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every tool that loads an adapter."""
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter.safetensors")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, where they have moved")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Argument of the tools that run a model."""
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")


def add_language_argument(parser: argparse.ArgumentParser) -> None:
    """Argument of the tools that load a multimodal adapter."""
    parser.add_argument("--language", metavar="hf:FOLDER", help="the language model, where it has moved")


def count(text: str, least: int = 0) -> int:
    """A count given on the command line."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"a whole number of at least {least} is expected, not '{text}'")
    return int(text)


def at_least_one(text: str) -> int:
    """A count given on the command line, of what there has to be one of."""
    return count(text, 1)


def words(text: str | None) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def counts(text: str) -> list[int]:
    """Counts given on the command line, comma-separated."""
    if not words(text):
        raise argparse.ArgumentTypeError(f"numbers are expected, such as 1,4, not '{text}'")
    return [at_least_one(word) for word in words(text)]


def above_zero(text: str) -> float:
    """A size given on the command line."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, not '{text}'")
    return size


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a tool on the command line and exit: 0 fine, 1 failed, 2 wrong input, 130 Ctrl-C.

    Errors that the project words itself are printed as they are; anything else keeps its traceback.
    """
    threading.excepthook = _in_a_thread
    try:
        code = main(sys.argv[1:]) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        code = WRONG_INPUT if isinstance(error, ValueError | TypeError | _WRONG_PATH) else FAILED
    sys.exit(code)


def sentence(error: Exception) -> str | None:
    """What is said of an error in place of its traceback; None where that is needed."""
    return _refused(error) or (str(error) if _worded(error) else _from_worker(error) or failures.said(error))


def _refused(error: Exception) -> str | None:
    """A sentence for what the system says of a file."""
    if not isinstance(error, OSError):
        return None
    advice = (_REFUSED | _MISPLACED if error.filename else _DISK).get(error.errno or 0)
    return advice and f"{error.filename or 'A file could not be written'}: {error.strerror}. {advice}"


def _in_a_thread(given: threading.ExceptHookArgs) -> None:
    """Leave out what is said elsewhere: TensorBoard's thread hands a refused file on to whoever writes next."""
    if not (isinstance(given.exc_value, OSError) and given.exc_value.errno in _DISK):
        threading.__excepthook__(given)


def _from_worker(error: Exception) -> str | None:
    """What a loader's worker says that met a worded error: torch hands on its whole traceback as the message."""
    text = str(error)
    if not (isinstance(error, _WORDED) and text.startswith("Caught ") and "in DataLoader worker process" in text):
        return None
    frames = re.findall(r'^  File "(.+)", line (\d+), in ', text, re.MULTILINE)
    # The last one: those before it led to it.
    starts = [found.end() for found in re.finditer(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", text, re.MULTILINE)]
    if not (frames and starts):
        return None
    file, line = frames[-1]
    worded = _raises(file, int(line)) or (isinstance(error, OSError) and _own(file))
    return text[starts[-1] :].strip() if worded else None


def _worded(error: Exception) -> bool:
    """Whether the message is meant for the user: a `raise` of these packages, or a file the system refuses."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if error.__traceback__ is None:
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return isinstance(error, _WORDED) and bool(str(error)) and _raises(file, line)


def _own(file: str) -> bool:
    return any(Path(file).is_relative_to(package) for package in _PACKAGES)


def _raises(file: str, line: int) -> bool:
    """Whether a `raise` statement of these packages begins on a line.

    A wrong call, a failed unpacking or an error of torch's also ends on a line of these packages, and is a bug whose
    traceback is needed. The source tells them apart.
    """
    if not _own(file):
        return False
    tree = ast.parse("".join(linecache.getlines(file)))
    return any(isinstance(node, ast.Raise) and node.lineno == line for node in ast.walk(tree))
