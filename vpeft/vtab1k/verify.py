"""Compare a folder of tasks with the reference: lists, sizes, classes, image sizes, and every pixel with its hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vpeft.data import vtab
from vpeft.data.tables import VTAB
from vpeft.vtab1k import manifest
from vpeft.vtab1k.community import file_facts
from vpeft.vtab1k.cuts import TOLERANCE, TRAIN, VAL
from vpeft.vtab1k.parallel import in_chunks
from vpeft.vtab1k.reference import CLASSES_SHOWN, IMAGE_SIZE, NOT_SETTLED, TEST_COUNTS, index_differs

Progress = Callable[[int, int], None]
_SHOWN = 3  # of the images of one kind of fault


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be.

    Args:
        task: The task.
        what: What was compared.
        expected: By the reference or the manifest.
        found: What is there.
    """

    task: str
    what: str
    expected: str
    found: str


def verify(task: str, root: Path, workers: int = 0, progress: Progress | None = None) -> list[Difference]:
    """What differs in a task's folder; nothing is changed.

    Args:
        task: The task.
        root: Folder of the tasks.
        workers: Processes that decode; 0 does it in this one.
        progress: Called with the images that are compared and their number.
    """
    folder = _folder(root, task)
    if folder is None:
        return [Difference(task, "folder", f"{root / task}", "missing")]
    try:
        content = manifest.read(folder, task)
    except FileNotFoundError:
        return [Difference(task, manifest.NAME, "written by data_prep/vtab1k.py", "missing")]
    except ValueError as error:
        return [Difference(task, manifest.NAME, "whole", str(error))]
    images = Path(content.get("folder") or folder)
    checks = (*_lists(images, content, task), *_numbers(task, content), *_choice(task, content))
    found = [Difference(task, *row) for row in checks]
    return found + [Difference(task, *row) for row in _images(task, images, content, workers, progress)]


def _folder(root: Path, task: str) -> Path | None:
    # A manifest of a community folder may lie apart from its lists.
    own = root / task
    return own if (own / manifest.NAME).is_file() else vtab.task_folder(root, task)


def _lists(folder: Path, content: dict[str, Any], task: str) -> Iterator[tuple[str, str, str]]:
    try:
        manifest.check_lists(folder, content, task)
    except ValueError as error:
        yield "lists", "those of the manifest", str(error)


def _numbers(task: str, content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    classes = len(VTAB[task].classes)
    labels = {part: Counter[int]() for part in ("train", "val", "test")}
    for row in content["images"]:
        labels[row["part"]][row["label"]] += 1
    sizes = {"train800": TRAIN, "val200": VAL, "train800val200": TRAIN + VAL, "test": VTAB[task].test}
    for name, parts in manifest.PARTS.items():
        seen = sum((labels[part] for part in parts), Counter[int]())
        total, expected, slack = seen.total(), sizes[name], TOLERANCE.get((task, name), 0)
        if abs(total - expected) > slack:
            yield f"images in {name}", f"{expected:,}" + (f" (or {slack} more or less)" if slack else ""), f"{total:,}"
        outside = sorted(label for label in seen if not 0 <= label < classes)
        if outside:
            yield f"labels in {name}", f"0 to {classes - 1}", ", ".join(map(str, outside[:_SHOWN]))
        known = {} if _another(task, content) else CLASSES_SHOWN
        shown = known.get((task, name), classes if name == "test" else None)
        if shown is not None and len(seen) != shown:
            yield f"classes in {name}", str(shown), str(len(seen))
    if task in TEST_COUNTS:
        for label, expected in enumerate(TEST_COUNTS[task]):
            if labels["test"][label] != expected:
                yield f"test images of class {label}", str(expected), str(labels["test"][label])


def _choice(task: str, content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if not _another(task, content):
        for part, expected, found in index_differs(task, content["images"]):
            yield f"choice of images in {part}", f"VPT's index ({expected[:12]})", found[:12]


def _another(task: str, content: dict[str, Any]) -> bool:
    return task in NOT_SETTLED and content["source"] == "originals"


def _images(
    task: str, folder: Path, content: dict[str, Any], workers: int, progress: Progress | None
) -> Iterator[tuple[str, str, str]]:
    rows = content["images"]
    size = IMAGE_SIZE.get(task)
    faults: dict[str, list[tuple[str, str, str]]] = {}
    done = 0
    for facts in in_chunks(partial(_facts, folder), [row["file"] for row in rows], workers):
        for fact in facts:
            row = rows[done]
            done += 1
            if isinstance(fact, str):
                faults.setdefault("file", []).append((row["file"], "a whole image", fact))
            elif fact["sha256"] != row["sha256"]:
                faults.setdefault("pixels", []).append((row["file"], row["sha256"][:12], fact["sha256"][:12]))
            elif size is not None and tuple(fact["size"]) != size:
                faults.setdefault("size", []).append(
                    (f"size of {row['file']}", "{} x {}".format(*size), "{} x {}".format(*fact["size"]))
                )
        if progress:
            progress(done, len(rows))
    for kind, listed in faults.items():
        yield from listed[:_SHOWN]
        if len(listed) > _SHOWN:
            yield f"{kind}: {len(listed) - _SHOWN:,} more images", "", ""


def _facts(folder: Path, name: str) -> dict[str, Any] | str:
    try:
        return file_facts(folder, name)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)


def table(found: list[Difference]) -> str:
    """The differences as lines of text with columns."""
    rows = [("task", "what", "expected", "found"), *((one.task, one.what, one.expected, one.found) for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )
