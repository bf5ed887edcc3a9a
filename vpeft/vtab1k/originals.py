"""A task's images from the original archives, in the order and with the cut of TFDS."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vpeft.data.tables import VTAB
from vpeft.vtab1k.cuts import parts
from vpeft.vtab1k.order import stored_order
from vpeft.vtab1k.readers import reader
from vpeft.vtab1k.selection import Chosen, Loaded, Selection, check_label
from vpeft.vtab1k.source import Example, Needed


def select(task: str, folder: Path, accept_other: bool = False) -> Selection:
    """The images of a task.

    Args:
        task: The task.
        folder: Holds the archives.
        accept_other: Use archives whose hash is not the known one; the manifest tells it.

    Raises:
        ValueError: An archive is missing, another one, damaged or incomplete.
    """
    source = reader(task)
    archives = check_archives(task, source.ARCHIVES, source.HOW, folder, accept_other)
    try:
        found = source.read(folder, task)
    except ValueError as error:
        strange = [one for one, about in zip(source.ARCHIVES, archives, strict=True) if not about["known"]]
        if not strange:
            raise
        again = ", ".join(f"{one.name} from {one.url}" for one in strange)
        raise ValueError(f"{error} It may not be the archive that this reads; fetch again {again}.") from error
    _check_classes(task, found)
    where = {split: stored_order(examples, split) for split, examples in found.items()}
    images: list[tuple[tuple[str, int], Chosen]] = []
    for part, (split, positions) in parts(task, {split: len(order) for split, order in where.items()}).items():
        for number, position in enumerate(positions):
            listed = where[split][position]
            example = found[split][listed]
            images.append(((split, listed), Chosen(part, number, split, position, partial(_load, example))))
    # In the reader's order, which is the archive's.
    images.sort(key=lambda one: one[0])
    facts = {"source": "originals", "lossy": False, "archives": archives}
    return Selection(task, [chosen for _, chosen in images], facts)


def _load(example: Example) -> Loaded:
    return example.image(), example.label, example.key


def _check_classes(task: str, found: dict[str, list[Example]]) -> None:
    seen: dict[int, Example] = {}
    for examples in found.values():
        for example in examples:
            seen.setdefault(example.label, example)
    for label, example in sorted(seen.items()):
        check_label(task, label, f"the example '{example.key}'")
    classes = len(VTAB[task].classes)
    if len(seen) != classes:
        missing = sorted(set(range(classes)) - set(seen))
        raise ValueError(
            f"{task}: the archives hold {len(seen)} classes and not {classes}; no example has the labels "
            f"{', '.join(map(str, missing[:5]))}{' ...' if len(missing) > 5 else ''}. They are incomplete or of "
            "another version; fetch those that --needed lists."
        )


def check_archives(
    task: str, needed: Sequence[Needed], how: str, folder: Path, accept_other: bool
) -> list[dict[str, Any]]:
    """Name, size and sha256 of the archives, after comparing them with what is known.

    Raises:
        ValueError: One is missing or another one; says where all that are missing come from.
    """
    missing = [one for one in needed if not (folder / one.name).exists()]
    if missing:
        lines = "".join(f"\n  {one.name}{' (by hand)' if one.manual else ''}: {one.url}" for one in missing)
        raise ValueError(f"{task}: {folder} lacks{lines}" + (f"\n{how}" if how else ""))
    return [_checked(task, one, folder / one.name, accept_other) for one in needed]


def _checked(task: str, needed: Needed, path: Path, accept_other: bool) -> dict[str, Any]:
    if path.is_dir():
        return {"name": needed.name, "bytes": None, "sha256": None, "known": False}
    state = path.stat()
    sha256, md5 = _hashes(path, state.st_size, state.st_mtime_ns, needed.sha256 is None and needed.md5 is not None)
    differs = [
        f"{kind} {found} and not {expected}"
        for kind, found, expected in (
            ("size", state.st_size, needed.size),
            ("sha256", sha256, needed.sha256),
            ("md5", md5, needed.md5),
        )
        if expected is not None and found is not None and found != expected
    ]
    if differs and not accept_other:
        raise ValueError(
            f"{task}: {path} is not the known archive: {', '.join(differs)}. Fetch it again from {needed.url}; or pass "
            "--accept-other-archives, and the manifest says that it is another one."
        )
    known = not differs and (needed.sha256 is not None or needed.md5 is not None)
    return {"name": needed.name, "bytes": state.st_size, "sha256": sha256, "known": known}


# Two tasks of one data set read the same gigabytes.
@lru_cache(maxsize=64)
def _hashes(path: Path, size: int, changed: int, with_md5: bool) -> tuple[str, str | None]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not with_md5:
        return sha256, None
    with path.open("rb") as file:
        return sha256, hashlib.file_digest(file, "md5").hexdigest()
