"""Copy the data of a run to the node's own disk, once a node, before it is read thousands of times.

    $SLURM_TMPDIR or $TMPDIR/vpeft-USER/KEY/FOLDER/    the copy; KEY is made of names, sizes and times of all files
    .../KEY/whole                                      written last

A copy is made beside its place and renamed, under a lock that the processes of a node share. A later run on the node
takes the copy that is there, if every file in it still has the size of its source. A source that was changed has
another KEY, so no files change while they are read.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from vpeft.data import embedded, vtab
from vpeft.schema import Config

VARIABLE = "VPEFT_STAGE"  # set by `vpeft.slurm.job`
Kind = TypeVar("Kind")
_WHOLE = "whole"


def local(config: Kind) -> Kind:
    """The configuration with its data on the node's own disk, for reading; what is recorded is the original one.

    As it is where the job was not submitted with `--slurm.stage true`.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    if not os.environ.get(VARIABLE):
        return config
    data: Any = config.data  # pyright: ignore[reportAttributeAccessIssue]
    source = _source(config)
    if source is None:
        return config
    copied = stage(source, node_disk())
    root = copied if source == _resolved(data.root) else copied.parent
    return dataclasses.replace(config, data=dataclasses.replace(data, root=root))  # pyright: ignore[reportArgumentType]


def node_disk() -> Path:
    """The folder for copies on this node: below $SLURM_TMPDIR, which ends with the job, or $TMPDIR, or /tmp."""
    place = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    return Path(place) / f"vpeft-{getpass.getuser()}"


def stage(source: Path, place: Path) -> Path:
    """Copy a folder, or take the copy that is there.

    Args:
        source: A folder.
        place: Of all copies on this node.

    Returns:
        The copy, a folder of the same name.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    files = listing(source)
    key = hashlib.sha256(json.dumps([str(source), files]).encode()).hexdigest()[:16]
    copy = place / key / source.name
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(place / f"{key}.lock"):
        if _is_whole(copy, files):
            return copy
        started = time.perf_counter()
        for left in place.glob(f".{key}.*"):  # of a job that was killed; the lock says that nobody is at it
            shutil.rmtree(left)
        shutil.rmtree(place / key, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=place))
        try:
            shutil.copytree(source, partial / source.name)
            _refuse_difference(source, partial / source.name, files)
            (partial / _WHOLE).write_text(f"{source}\n")
            os.replace(partial, place / key)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"{source} ({_megabytes(files):.0f} MB) could not be copied to {place}: {error}. Free some space "
                "there, set TMPDIR to another disk of the node, or leave out --slurm.stage."
            ) from error
        print(
            f"{source}: {len(files)} files, {_megabytes(files):.1f} MB copied to {copy} in "
            f"{time.perf_counter() - started:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return copy


def listing(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file below a folder."""
    found = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            state = path.stat()
            found[path.relative_to(folder).as_posix()] = [state.st_size, state.st_mtime_ns]
    return found


def _is_whole(copy: Path, files: dict[str, list[int]]) -> bool:
    # A node's cleaner takes single files that were not read for long.
    return (copy.parent / _WHOLE).exists() and _sizes(listing(copy)) == _sizes(files)


def _refuse_difference(source: Path, copy: Path, files: dict[str, list[int]]) -> None:
    if listing(source) != files:
        raise OSError(f"{source} was changed while it was copied")
    if _sizes(listing(copy)) != _sizes(files):
        raise OSError("the copy has other files or sizes than its source")


def _sizes(files: dict[str, list[int]]) -> dict[str, int]:
    return {name: size for name, (size, _) in files.items()}


def _megabytes(files: dict[str, list[int]]) -> float:
    return sum(size for size, _ in files.values()) / 1e6


def _source(config: Any) -> Path | None:
    """The folder of the task, or None where what is read is made in the user cache and small."""
    data = config.data
    if not isinstance(config, Config):
        return _resolved(data.root)
    if data.root is None:
        return embedded.prepared(data.task).resolve()
    root = _resolved(data.root)
    # Of a collection, only the one task.
    return (vtab.task_folder(root, data.task) or root) if root and data.format != "folder" else root


def _resolved(root: Path | None) -> Path | None:
    return None if root is None else root.expanduser().resolve()
