"""Read published packages without running anything in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from vpeft.fetch import BAD_ZIP, refuse_encrypted, stays_inside


class Source(Protocol):
    """Named files of a package."""

    names: list[str]

    def read(self, member: str) -> bytes:
        """Bytes of one file."""
        ...


class Archive:
    """The members of one zip file; opened once, since some hold thousands of images."""

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._opened = opened
        self.names = opened.namelist()

    def read(self, member: str) -> bytes:
        """Bytes of one member.

        Raises:
            ValueError: The archive lacks it or is damaged there.
        """
        try:
            return self._opened.read(member)
        except KeyError as error:
            raise ValueError(f"{self._opened.filename} holds no '{member}'; it is another version.") from error
        except (*BAD_ZIP, OSError) as error:
            raise ValueError(f"{self._opened.filename} is damaged at '{member}' ({error}); delete it.") from error


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a wheel for reading.

    Raises:
        ValueError: It is no zip archive, it is encrypted, or a member's path leads out of it.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (*BAD_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path} is not a complete zip archive ({error}); delete it and run again.") from error
    with opened:
        refuse_encrypted(opened)
        for name in opened.namelist():
            if not stays_inside(name):
                raise ValueError(
                    f"{path} has the member '{name}', which leads out of the archive; it is not opened. Delete it."
                )
        yield Archive(opened)


class Folder:
    """Files of an installed package whose hashes are known."""

    def __init__(self, path: Path, sha256: Mapping[str, str]) -> None:
        self._path, self._sha256 = path, sha256
        self.names = list(sha256)

    def read(self, member: str) -> bytes:
        """Bytes of one file.

        Raises:
            ValueError: It is missing or not the file that is known.
        """
        file = self._path / member
        if not file.is_file():
            raise ValueError(f"{file} is missing; install its package again.")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != self._sha256[member]:
            raise ValueError(f"{file} is not the file that is known (its sha256 differs); install its package again.")
        return data


def unpickle_array(data: bytes) -> np.ndarray:
    """The array of numbers in a pickle; nothing else is built.

    Raises:
        ValueError: The pickle names anything but numpy's array, or is damaged.
    """
    try:
        array = _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # damaged bytes make an unpickler raise anything
        raise ValueError(f"This pickle is not a plain array of numbers ({error}); it is not loaded.") from error
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise ValueError("This pickle is not a plain array of numbers; it is not loaded.")
    return array


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        # numpy has moved the module of _reconstruct; a pickle keeps the name of its day.
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray") and global_name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module_name == "numpy" and global_name in ("ndarray", "dtype"):
            return getattr(np, global_name)
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_idx(data: bytes) -> np.ndarray:
    """The uint8 array in a gzipped IDX file (the format of MNIST).

    Raises:
        ValueError: It is not one, or cut short.
    """
    try:
        raw = gzip.decompress(data)
        kind, rank = struct.unpack_from(">HBB", raw)[1:]
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        if kind != 8:
            raise ValueError("its numbers are not bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"This is not a whole IDX file ({error}).") from error
