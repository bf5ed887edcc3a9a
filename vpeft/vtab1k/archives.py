"""Members of zip files, tar files (compressed or not) and folders, read where they lie and never extracted.

A member's place is found once. Workers read from it with a handle of their own, forward where the archive is
compressed as a whole, so ask for members in the archive's order.
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, cast

from PIL import Image

from vpeft.data.images import UnreadableImage, open_image
from vpeft.fetch import BAD_ZIP, refuse_encrypted, stays_inside

_MAGIC = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_OPEN = {"tar": Path.open, "file": Path.open, "gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_DAMAGED = (*BAD_ZIP, tarfile.TarError, lzma.LZMAError, OSError)


@dataclass(frozen=True)
class Stored:
    """One file in an archive: where its bytes lie.

    Args:
        archive: The archive, or the file itself where it lies in a folder.
        kind: How the archive is read: a key of _OPEN, zip, part (of a zip member) or file.
        name: The member's name.
        offset: Of its first byte in the (decompressed) stream that is read; 0 for whole files.
        size: Bytes.
    """

    archive: Path
    kind: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            ValueError: The archive is damaged there.
        """
        try:
            data = self._bytes()
        except _DAMAGED as error:
            if _refused(error):
                raise
            raise _damaged(self.archive, error, self.name) from error
        if len(data) != self.size:
            raise ValueError(
                f"{self.archive} is cut short at '{self.name}': {len(data)} bytes of {self.size}; fetch it again."
            )
        return data

    def part(self, offset: int, size: int) -> Stored:
        """Some bytes of it, read without the rest where the archive allows; ask in rising order."""
        kind = "part" if self.kind == "zip" else self.kind
        return replace(self, kind=kind, offset=self.offset + offset, size=size)

    def _bytes(self) -> bytes:
        if self.kind == "zip":
            return _opened_zip(self.archive, _state(self.archive)).read(self.name)
        if self.kind == "part":
            stream = _opened_member(self.archive, self.name, _state(self.archive))
        else:
            stream = _opened(self.archive, self.kind, _state(self.archive))
        stream.seek(self.offset)
        return stream.read(self.size)

    def image(self) -> Image.Image:
        """The file decoded by Pillow, as it is stored: no EXIF turn, no change of mode.

        Raises:
            ValueError: It is no image.
        """
        return decode(self.read(), f"'{self.name}' in {self.archive}")


def decode(data: bytes, where: str) -> Image.Image:
    """An image file decoded by Pillow, as it is stored: no EXIF turn, no change of mode.

    Args:
        where: What it is, for the message.

    Raises:
        ValueError: It is no image.
    """
    try:
        image = open_image(io.BytesIO(data), where)
        image.load()
    except UnreadableImage:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where} is not a whole image ({error}); fetch again what holds it.") from error
    return image


def _state(path: Path) -> tuple[int, ...]:
    # Handles belong to one process (after a fork the parent's would share their position) and to one file.
    found = path.stat()
    return os.getpid(), found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _opened_zip(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=8)
def _opened_member(path: Path, name: str, state: tuple[int, ...]) -> IO[bytes]:
    return _opened_zip(path, state).open(name)


@lru_cache(maxsize=8)
def _opened(path: Path, kind: str, state: tuple[int, ...]) -> IO[bytes]:
    return cast(IO[bytes], _OPEN[kind](path, "rb"))


class Archive:
    """The files of one archive or folder, in its order.

    Args:
        path: A zip file, a tar file (plain, gzip, bzip2 or xz), or a folder.

    Raises:
        ValueError: It is none of these, damaged or encrypted, or a member or link leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise ValueError(f"{path} is missing.")
        self._members = {member.name: member for member in _index(path)}
        self.names = list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def below(self, folder: str) -> list[str]:
        """Names of the files below a folder of the archive."""
        prefix = folder.rstrip("/") + "/"
        return [name for name in self.names if name.startswith(prefix)]

    def member(self, name: str) -> Stored:
        """The place of one file.

        Raises:
            ValueError: The archive lacks it; names near ones.
        """
        if name not in self._members:
            near = difflib.get_close_matches(name, self.names, n=3) or self.names[:3]
            raise ValueError(f"{self.path} holds no '{name}'; it has, for example, {', '.join(near) or 'nothing'}.")
        return self._members[name]

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            ValueError: The archive lacks it or is damaged there.
        """
        return self.member(name).read()


def _index(path: Path) -> Iterable[Stored]:
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
    try:
        return list(_zip(path) if kind == "zip" else _tar(path, kind))
    except _DAMAGED as error:
        if _refused(error):
            raise
        raise _damaged(path, error) from error


def _refused(error: Exception) -> bool:
    """Whether the system refuses the file, which its own sentence names."""
    return isinstance(error, OSError) and error.filename is not None


def _damaged(path: Path, error: Exception, name: str | None = None) -> ValueError:
    where = f" at '{name}'" if name else ""
    return ValueError(f"{path} is not a whole zip or tar archive{where} ({error}); fetch it again.")


def _folder(path: Path) -> Iterator[Stored]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            name = file.relative_to(path).as_posix()
            if not file.resolve().is_relative_to(path.resolve()):
                raise _leaves(path, name)
            yield Stored(file, "file", name, 0, file.stat().st_size)


def _zip(path: Path) -> Iterator[Stored]:
    with zipfile.ZipFile(path) as opened:
        refuse_encrypted(opened)
        for info in opened.infolist():
            _inside(path, info.orig_filename)
            if info.external_attr >> 28 == 0o12:  # a link made by Unix
                raise ValueError(f"{path} has the link '{info.filename}'; a zip of data holds none, so it is not used.")
            if not info.is_dir():
                yield Stored(path, "zip", info.filename, 0, info.file_size)


def _tar(path: Path, kind: str) -> Iterator[Stored]:
    found: dict[str, Stored] = {}
    with _OPEN[kind](path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
        for info in opened:
            _inside(path, info.name)
            name = _plain(info.name)
            if info.issym() or info.islnk():
                base = PurePosixPath(name).parent if info.issym() else PurePosixPath()
                target = os.path.normpath(base / info.linkname)
                if info.linkname.startswith("/") or target.startswith(".."):
                    raise _leaves(path, f"{info.name} -> {info.linkname}")
                if target in found:
                    there = found[target]
                    found[name] = Stored(path, kind, name, there.offset, there.size)
            elif info.isfile():
                found[name] = Stored(path, kind, name, info.offset_data, info.size)
            elif not info.isdir():
                raise ValueError(f"{path} has the member '{info.name}', which is a device and no file; it is not used.")
    return iter(found.values())


def _plain(name: str) -> str:
    return PurePosixPath(name).as_posix()


def _inside(path: Path, name: str) -> None:
    if not stays_inside(name) or "\0" in name:
        raise _leaves(path, name)


def _leaves(path: Path, name: str) -> ValueError:
    return ValueError(f"{path} has the member '{name}', which leads out of the archive; it is not used.")
