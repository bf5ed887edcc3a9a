"""Read a task in the community's VTAB-1k layout (NOAH, arXiv 2206.04673).

root/TASK/train800.txt  val200.txt  train800val200.txt  test.txt     "images/train/000000.png 3"
root/TASK/images/{train,val,test}/000000.png
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from vpeft.data.listing import Listing, Split
from vpeft.data.tables import ALIASES, VTAB, Task, find_task
from vpeft.fetch import stays_inside
from vpeft.vtab1k import manifest

LISTS = ("train800", "val200", "train800val200", "test")
_SIZES = {"train800": 800, "val200": 200, "train800val200": 1000}


def has_lists(folder: Path) -> bool:
    """Whether there is a split list in this folder."""
    return any((folder / f"{part}.txt").is_file() for part in LISTS)


def task_folder(root: Path, name: str) -> Path | None:
    """The folder under `root` (or `root` itself) that holds a split list of this task."""
    own = ALIASES.get(name, name)
    task = VTAB.get(own)
    candidates = [root / name, root / own, *([root / task.folder] if task and task.folder else []), root]
    return next((folder for folder in candidates if has_lists(folder)), None)


def read(folder: Path, name: str, split: Literal["train800", "train800val200"]) -> Listing:
    """List a task's files and labels, with what its manifest tells of their origin.

    Args:
        folder: Holds the split lists, and the manifest where data_prep/vtab1k.py wrote one.
        name: The task; its classes come from the table.
        split: `train800` reads val200 as well.

    Raises:
        ValueError: As `read_lists`; or the manifest is damaged or changed, or a list is not the one it was made with,
            or the folder is of an export that was stopped.
    """
    listing = read_lists(folder, name, split)
    listing.provenance.update(_origin(folder, find_task(name)[0]))
    return listing


def _origin(folder: Path, name: str) -> dict[str, Any]:
    content = manifest.read(folder, name) if (folder / manifest.NAME).is_file() else None
    if (folder / manifest.JOURNAL).exists():
        raise ValueError(f"The export of {name} was stopped before {folder} was whole. {manifest.remedy(folder, name)}")
    if content is None:
        return {"source": None, "exact": None, "manifest": None, "pixels": None}
    manifest.check_lists(folder, content, name)
    told = {key: content[key] for key in ("source", "lossy", "exact", "pixels")}
    return told | {"manifest": content["sha256"]}


def read_lists(folder: Path, name: str, split: Literal["train800", "train800val200"]) -> Listing:
    """List a task's files and labels.

    Args:
        folder: Holds the split lists.
        name: The task; its classes come from the table.
        split: `train800` reads val200 as well.

    Raises:
        ValueError: A list is missing or empty, a line is malformed, a label is out of range, a path
            leaves the folder, or an image is in two splits.
    """
    name, task = find_task(name)
    wanted = {"train": split, "val": "val200" if split == "train800" else None, "test": "test"}
    parts = {part: _read_list(folder, stem, name, task) if stem else Split() for part, stem in wanted.items()}
    _refuse_overlap(folder, parts)
    jpeg = any(is_jpeg(file.name) for part in parts.values() for file in part.files)
    warning = [_jpeg_warning(name)] if jpeg else []
    for part, stem in wanted.items():
        expected = _SIZES.get(stem or "", task.test)
        if stem and len(parts[part]) != expected:
            warning.append(f"{stem}.txt of {name} lists {len(parts[part])} images and not the {expected} of the task.")
    provenance: dict[str, Any] = {
        "format": "vtab-jpeg" if jpeg else "vtab-png",
        "task": name,
        "group": task.group,
        "synthetic": task.synthetic,
        "split": split,
        "lossy": jpeg,
        "warning": " ".join(warning) or None,
        "statement": None,
        "licence": None,
        "packages": [],
    }
    return Listing(list(task.classes), parts["train"], parts["val"], parts["test"], provenance)


def is_jpeg(file: str) -> bool:
    """Whether a file's name says that it is JPEG."""
    return file.lower().endswith((".jpg", ".jpeg"))


def _jpeg_warning(name: str) -> str:
    return (
        f"The images of {name} are JPEG: the community's archives are compressed with loss, which costs accuracy "
        "(CIFAR-100: about 10 points reported). Compare only with results from the same files."
    )


def _read_list(folder: Path, stem: str, name: str, task: Task) -> Split:
    path = folder / f"{stem}.txt"
    if not path.is_file():
        present = [f"{part}.txt" for part in LISTS if (folder / f"{part}.txt").is_file()]
        raise ValueError(
            f"{path} is missing; a VTAB-1k task has {', '.join(f'{part}.txt' for part in LISTS)}, and this folder has "
            f"{', '.join(present) or 'none of them'}. Restore the list, or choose another data.split."
        )
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); restore it.") from error
    found = Split()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            file, label = _parse(line, f"{path}, line {number}", name, len(task.classes))
            found.files.append(folder / file)
            found.labels.append(label)
    if not found.files:
        raise ValueError(f"{path} lists no image; a line reads 'images/train/000000.png 3'.")
    return found


def _parse(line: str, where: str, name: str, classes: int) -> tuple[str, int]:
    file, _, label = line.strip().rpartition(" ")
    if not file.strip() or not re.fullmatch(r"-?[0-9]{1,9}", label):
        raise ValueError(f"{where}: '{line.strip()}' is not an image and its label, as 'images/train/000000.png 3'.")
    if not 0 <= int(label) < classes:
        raise ValueError(
            f"{where}: label {label} is out of range; {name} has {classes} classes, so labels 0 to {classes - 1}."
        )
    file = file.strip()
    if not stays_inside(file):
        raise ValueError(f"{where}: '{file}' leaves the task's folder; paths are relative to it and without '..'.")
    return file, int(label)


def _refuse_overlap(folder: Path, parts: dict[str, Split]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := set(parts[first].files) & set(parts[second].files):
            raise ValueError(
                f"{min(shared)} is listed for {first} and for {second} in {folder}: what is trained on cannot be "
                "evaluated on. Restore the published lists."
            )
