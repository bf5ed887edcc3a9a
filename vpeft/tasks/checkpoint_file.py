"""The file of a checkpoint: torch's own zip archive, with a sha256 of all the rest in the archive's comment.

torch.load looks at no checksum, so a flipped bit in a weight or in a moment of Adam would go on training unseen.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from vpeft import failures
from vpeft.fetch import write_atomic

_MARK = b"vpeft sha256 "
_COMMENT = len(_MARK) + 64
_CHUNK = 2**20


def write(path: Path, checkpoint: Any) -> None:
    """Write a checkpoint atomically: a full disk or a kill leaves the previous one.

    Args:
        path: The file.
        checkpoint: What torch.save takes.

    Raises:
        OSError: The file could not be written.
    """
    content = io.BytesIO()  # torch's own writer reports a full disk as a bare RuntimeError
    torch.save(checkpoint, content)
    with content.getbuffer() as archive:
        archive[-2:] = _COMMENT.to_bytes(2, "little")  # an archive ends with the length of its comment, so far none
        digest = hashlib.sha256(archive).hexdigest()
    content.seek(0, io.SEEK_END)
    content.write(_MARK + digest.encode())
    with content.getbuffer() as whole:
        write_atomic(path, whole)


def find(path: Path) -> Path | None:
    """The file, if it is there and what was written; None where there is none.

    Raises:
        ValueError: It is damaged.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        left = file.seek(0, io.SEEK_END) - _COMMENT
        file.seek(0)
        digest = hashlib.sha256()
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        whole = left == 0 and file.read() == _MARK + digest.hexdigest().encode()
    if not whole:
        raise ValueError(
            f"{path} is damaged, incomplete or of an older version: it has not the sha256 that it should end with. "
            "Put back a copy of it, or delete it: the same command then starts this run from its beginning."
        )
    return path


def read(path: Path) -> Any:
    """What a checkpoint holds, on the CPU; tensors are read from the file when they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds more than tensors and plain values.
    """
    return load(find(path) or path, mmap=True)


def load(path: Path, mmap: bool) -> Any:
    """The same of a file that `find` gave.

    Args:
        path: The file.
        mmap: Whether tensors are read when they are used; else they are read now.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # its sha256 fits, so somebody made it: bytes that are no archive raise anything
        if failures.out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is no checkpoint of a run ({reason:.300}). Put back a copy of it, or delete it: the same command "
            "then starts this run from its beginning."
        ) from error
