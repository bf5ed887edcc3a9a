"""Check a folder in the community's layout (NOAH, arXiv:2206.04673) and write a manifest of what is in it.

Nothing is converted. The folders that circulate hold JPEG files that were made of decoded images, so their pixels are
not those of VTAB-1k; the manifest says `lossy`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vpeft.data import vtab
from vpeft.data.tables import VTAB
from vpeft.vtab1k import manifest
from vpeft.vtab1k.archives import decode
from vpeft.vtab1k.parallel import in_chunks
from vpeft.vtab1k.selection import pixel_hash

Progress = Callable[[int, int], None]
Row = dict[str, Any]


def adopt(
    task: str, source: Path, root: Path | None = None, workers: int = 0, progress: Progress | None = None
) -> Path:
    """Decode every listed image of a task and write the manifest.

    Args:
        task: The task.
        source: The community's folder of tasks, or the task's own.
        root: Write the manifest to `root/TASK`; beside the lists where None.
        workers: Processes that decode; 0 does it in this one.
        progress: Called with the images that are checked and their number.

    Returns:
        The folder of the manifest.

    Raises:
        ValueError: The task or a list is missing, lists contradict each other, a label is out of range, or an image
            is not whole.
    """
    folder = vtab.task_folder(source, task)
    if folder is None:
        names = " or ".join(f"'{name}'" for name in dict.fromkeys((VTAB[task].folder or task, task)))
        raise ValueError(
            f"{task}: {source} has no folder {names} with train800.txt and the other lists; give the folder that holds "
            "the tasks."
        )
    place = root / task if root else folder
    _refuse_other(place, task)
    rows, warning = _listed(folder, task)
    done = 0
    for facts in in_chunks(partial(file_facts, folder), [row["file"] for row in rows], workers):
        for fact in facts:
            rows[done] |= fact
            done += 1
        if progress:
            progress(done, len(rows))
    if warning:
        warnings.warn(warning, stacklevel=2)
    lossy = any(vtab.is_jpeg(row["file"]) for row in rows)
    about = {"source": "community", "lossy": lossy, "folder": str(folder.resolve()) if root else None}
    manifest.write(place, task, rows, about, exact=None, classes=len(VTAB[task].classes))
    return place


def _refuse_other(place: Path, task: str) -> None:
    try:
        source = manifest.read(place, task)["source"]
    except (FileNotFoundError, ValueError):
        return
    if source != "community":
        raise ValueError(
            f"{task}: {place} holds a task that was made from {source}, whose {manifest.NAME} would be overwritten; "
            "--verify checks it. For a community folder choose another --root."
        )


def _listed(folder: Path, task: str) -> tuple[list[Row], str | None]:
    apart, together = (vtab.read_lists(folder, task, split) for split in ("train800", "train800val200"))
    rows = [
        {"part": part, "file": file.relative_to(folder).as_posix(), "label": label}
        | {"split": None, "position": None, "key": None}
        for part, split in (("train", apart.train), ("val", apart.val), ("test", apart.test))
        for file, label in zip(split.files, split.labels, strict=True)
    ]
    file, times = Counter(row["file"] for row in rows).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{task}: '{file}' is listed {times} times in {folder}. Restore the published lists.")
    pieces = apart.train + apart.val
    odd = set(zip(pieces.files, pieces.labels, strict=True)) ^ set(
        zip(together.train.files, together.train.labels, strict=True)
    )
    if odd:
        raise ValueError(
            f"{task}: train800val200.txt in {folder} is not train800.txt and val200.txt together: {min(odd)[0].name} "
            "is in one of them only, or has another label. Restore the published lists."
        )
    return rows, apart.provenance["warning"]


def file_facts(folder: Path, name: str) -> Row:
    """Size (width, height), bytes and pixel hash of an image file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a whole image.
    """
    data = (folder / name).read_bytes()
    image = decode(data, str(folder / name))
    return {"size": list(image.size), "bytes": len(data), "sha256": pixel_hash(image)}
