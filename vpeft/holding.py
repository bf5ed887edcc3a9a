"""A run to oneself: two processes that went on with one run would write its checkpoint in turns, and two rows."""

from __future__ import annotations

import errno
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only

from vpeft.fetch import sweep
from vpeft.run_folder import RunFolder
from vpeft.schema import ConfigError

# Workers of a data loader have the lock with the process that started them, and outlive a killed one by some seconds.
PATIENCE = 15.0
# What a file system answers that has no locks: Lustre without -o flock, NFS without lockd, some of FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Hold a run while it is trained; the system lets go of it when the process ends, however it does.

    Of several processes that train one run together the first holds it. On a file system without locks nobody holds
    it, and a line says so.

    Args:
        run: Its folder.

    Raises:
        ConfigError: Another process is training it.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield
        return
    with (run.path / "run.json").open("rb+") as file:  # a shared file system locks only what is open for writing
        if not _lock(file.fileno(), run):
            print(
                f"{run.path} is on a file system without locks (flock): start no second process on this run.",
                file=sys.stderr,
            )
            yield
            return
        sweep(run.path)  # of whoever was killed here before
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # for workers that still live, too


def _lock(descriptor: int, run: RunFolder) -> bool:
    """Whether the file system has locks; then it is held."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                raise ConfigError(
                    f"{run.path} is being trained by another process. Wait for that one, or start a run of its own "
                    "without train.resume or under another name."
                ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        time.sleep(0.1)
