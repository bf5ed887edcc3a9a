"""The manifest of a task's folder: every image's hash, label and origin, counts, and a hash of the manifest itself.

It is written when all images are there and before the lists are, so a folder with lists and a sound manifest is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import PIL
from PIL import features

import vpeft
from vpeft.fetch import stays_inside, write_atomic
from vpeft.json_file import fits

NAME = "manifest.json"
JOURNAL = ".export.jsonl"  # of images that are made, until the task is whole
FORMAT = "vpeft-vtab1k-1"
PARTS = {"train800": ("train",), "val200": ("val",), "train800val200": ("train", "val"), "test": ("test",)}

Row = dict[str, Any]
_ROW = {"part": str, "file": str, "label": int, "sha256": str, "key": str | int | None}
_FORM = {"source": str, "lossy": bool, "exact": bool | None, "pixels": str, "lists": {str: str}, "images": [_ROW]}


def write(folder: Path, task: str, rows: Sequence[Row], facts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Write the manifest of `rows` and return it.

    Args:
        folder: The task's folder.
        task: The task.
        rows: One an image: part, file, label, sha256 of the pixels, size (width, height), bytes of the file, and
            split, position and key in TFDS where they are known.
        facts: Where the images come from; has `source` and `lossy`.
        more: Further entries, among them `exact`: whether the images are the published choice, None if not known.
    """
    content = {
        "format": FORMAT,
        "task": task,
        **facts,
        **more,
        "lists": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in lists(rows).items()},
        "pixels": pixels(rows),
        "counts": counts(rows),
        "made": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "vpeft": vpeft.__version__,
            "pillow": PIL.__version__,
            "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        },
        "images": list(rows),
    }
    content["sha256"] = _digest(content)
    head = {key: value for key, value in content.items() if key != "images"}
    # One image a line, so that two manifests can be compared with diff.
    text = json.dumps(head, indent=1)[:-2] + ',\n "images": [\n'
    text += ",\n".join(json.dumps(row) for row in rows) + "\n ]\n}\n"
    write_atomic(folder / NAME, text.encode())
    return content


def write_lists(folder: Path, rows: Sequence[Row]) -> None:
    """Write the four lists."""
    for name, text in lists(rows).items():
        write_atomic(folder / f"{name}.txt", text.encode())


def lists(rows: Sequence[Row]) -> dict[str, str]:
    """The text of every list, by its name without suffix."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for row in rows:
        lines[row["part"]].append(f"{row['file']} {row['label']}\n")
    return {name: "".join(line for part in parts for line in lines[part]) for name, parts in PARTS.items()}


def pixels(rows: Sequence[Row]) -> str:
    """A hash of all images and labels in their order, the same whoever made the folder and when."""
    return hashlib.sha256(
        "".join(f"{row['part']} {row['label']} {row['sha256']}\n" for row in rows).encode()
    ).hexdigest()


def counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Images of every class in every part."""
    found: dict[str, dict[int, int]] = {"train": {}, "val": {}, "test": {}}
    for row in rows:
        part = found[row["part"]]
        part[row["label"]] = part.get(row["label"], 0) + 1
    return {part: {str(label): number for label, number in sorted(seen.items())} for part, seen in found.items()}


def read(folder: Path, task: str) -> dict[str, Any]:
    """A task's manifest after checking that nobody changed it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is half-written, changed, of another task or of another version.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_bytes())
        told = content["sha256"]
        same = told == _digest(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). {remedy(folder, task)}") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has the format '{content.get('format')}' and not {FORMAT}. {remedy(folder, task)}")
    if not same:
        raise ValueError(f"{path} was changed after it was written: its sha256 differs. {remedy(folder, task)}")
    if content.get("task") != task:
        raise ValueError(
            f"{path} is of the task '{content.get('task')}' and not of '{task}'; give the folder its own name back."
        )
    if not fits(content, _FORM) or not all(
        row["part"] in ("train", "val", "test") and stays_inside(row["file"]) for row in content["images"]
    ):
        raise ValueError(f"{path} is damaged (its entries have other forms). {remedy(folder, task)}")
    return content


def check_lists(folder: Path, content: Mapping[str, Any], task: str) -> None:
    """Refuse lists that are not those of the manifest.

    Raises:
        ValueError: A list is missing or changed.
    """
    for name, sha256 in content["lists"].items():
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise ValueError(f"{path} is missing. {remedy(folder, task)}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{path} is not the list that {NAME} was made with. {remedy(folder, task)}")


def remedy(folder: Path, task: str) -> str:
    """What makes a task's folder whole again, for messages."""
    return (
        f"Run the command that made it again (python data_prep/vtab1k.py --tasks {task} --root {folder.parent} "
        "--source ...): what is sound is kept."
    )


def _digest(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
