"""Write a task as PNG files, lists and a manifest; stopped at any time, the next call goes on.

An image is written beside its place and moved there, and then noted in a journal; what is noted is not made again.
PNG also where the source is JPEG: its pixels are fixed by the decoder of the export and recorded, and no EXIF tag can
turn an image later.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from vpeft.data.tables import VTAB
from vpeft.fetch import sweep, sync, write_atomic
from vpeft.json_file import fits, parsed
from vpeft.vtab1k import manifest
from vpeft.vtab1k.parallel import in_chunks
from vpeft.vtab1k.reference import is_published
from vpeft.vtab1k.selection import Chosen, Selection, as_image, check_label, pixel_hash

_LEVEL = 3  # of zlib: the files are 10 % larger than at 6, and photographs are written 1.5 times as fast

Progress = Callable[[int, int], None]
Row = dict[str, Any]
# Of the journal, where a line that has another form is left out: its image is made again.
_ROW = {"part": str, "file": str, "label": int, "split": str, "position": int, "key": str | int | None}
_ROW |= {"size": [int], "bytes": int, "sha256": str}


def export(selection: Selection, root: Path, workers: int = 0, progress: Progress | None = None) -> Path:
    """Make a task's folder, or what is missing of it.

    Args:
        selection: The images.
        root: Folder of the tasks.
        workers: Processes that decode and write; 0 does it in this one.
        progress: Called with the images that are there and their number.

    Raises:
        ValueError: An image or a label is not what it should be, or the folder is of another source.
        OSError: A file cannot be written.
    """
    task, folder = selection.task, root / selection.task
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{task}.lock"):  # a second call waits for the first
        done = _kept(folder, selection)
        todo = [chosen for chosen in selection.images if chosen.file not in done]
        report = progress or (lambda made, total: None)
        report(len(done), len(selection.images))
        if todo or not _whole(folder, task):
            _start(folder, selection, list(done.values()))
            for rows in in_chunks(partial(_make, folder, task), todo, workers):
                _note(folder, rows)
                done |= {row["file"]: row for row in rows}
                report(len(done), len(selection.images))
            _finish(folder, selection, done)
    return folder


def _finish(folder: Path, selection: Selection, done: dict[str, Row]) -> None:
    order = {"train": 0, "val": 1, "test": 2}
    rows = sorted(done.values(), key=lambda row: (order[row["part"]], row["file"]))
    task = selection.task
    exact = is_published(task, rows)
    if exact is False:
        warnings.warn(
            f"The images of {task} are not those of the index that VPT's authors published; results from them may "
            "differ from published ones.",
            stacklevel=3,
        )
    more = {"exact": exact, "classes": len(VTAB[task].classes), "fingerprint": selection.fingerprint}
    manifest.write(folder, task, rows, selection.facts, **more)
    manifest.write_lists(folder, rows)
    (folder / manifest.JOURNAL).unlink()


def _whole(folder: Path, task: str) -> bool:
    try:
        manifest.check_lists(folder, manifest.read(folder, task), task)
    except (FileNotFoundError, ValueError):
        return False
    return not (folder / manifest.JOURNAL).exists()


def _kept(folder: Path, selection: Selection) -> dict[str, Row]:
    """Rows of images that are there, from the manifest or from the journal of a run that was stopped."""
    rows: list[Row] = []
    try:
        content = manifest.read(folder, selection.task)
    except FileNotFoundError:
        _refuse_lists(folder, selection.task)
    except ValueError:
        # Its rows cannot be trusted; every image is made again from the source, and until then the loader refuses it.
        pass
    else:
        if content.get("fingerprint") != selection.fingerprint:
            raise ValueError(
                f"{folder} holds {selection.task} from another source ({content['source']}) or other archives; delete "
                "the folder, or choose another --root."
            )
        rows += [row for row in content["images"] if fits(row, _ROW)]
    rows += _journal(folder, selection)
    wanted = {chosen.file: (chosen.part, chosen.split, chosen.position) for chosen in selection.images}
    kept = {row["file"]: row for row in rows if wanted.get(row["file"]) == (row["part"], row["split"], row["position"])}
    return {file: row for file, row in kept.items() if _size(folder / file) == row["bytes"]}


def _refuse_lists(folder: Path, task: str) -> None:
    lists = [name for name in manifest.PARTS if (folder / f"{name}.txt").exists()]
    if lists and not (folder / manifest.JOURNAL).exists():
        raise ValueError(
            f"{folder} has {lists[0]}.txt and no {manifest.NAME}: it holds {task} from somewhere else, such as a "
            "community folder, whose lists would be overwritten. Choose another --root, or move the folder away."
        )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _journal(folder: Path, selection: Selection) -> list[Row]:
    try:
        # After the last line break is what a kill tore.
        head, *lines = (folder / manifest.JOURNAL).read_bytes().split(b"\n")[:-1] or [b""]
    except OSError:
        return []
    same = parsed(head, dict) == {"fingerprint": selection.fingerprint}
    rows = [parsed(line, _ROW) for line in lines] if same else []
    return [row for row in rows if row is not None]


def _start(folder: Path, selection: Selection, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in ({"fingerprint": selection.fingerprint}, *rows))
    write_atomic(folder / manifest.JOURNAL, text.encode())
    for part in ("train", "val", "test"):
        images = folder / "images" / part
        images.mkdir(parents=True, exist_ok=True)
        for torn in images.glob(".*.tmp"):
            torn.unlink()
    sweep(folder)


def _note(folder: Path, rows: Sequence[Row]) -> None:
    """Enter images into the journal, once they are on disk."""
    written = [folder / row["file"] for row in rows] + [
        folder / "images" / part for part in {row["part"] for row in rows}
    ]
    # Many at once, because the disk takes as long for many as for one.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, written))
    with (folder / manifest.JOURNAL).open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    sync(folder / manifest.JOURNAL)


def _make(folder: Path, task: str, chosen: Chosen) -> Row:
    decoded, label, key = chosen.load()
    check_label(task, label, f"{chosen.split}[{chosen.position}]" if key is None else f"'{key}'")
    image = as_image(decoded)
    path = folder / chosen.file
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        image.save(temporary, "PNG", compress_level=_LEVEL)
        size = temporary.stat().st_size
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error.strerror or error}. The next call goes on here.") from error
    return {
        "part": chosen.part,
        "file": chosen.file,
        "label": label,
        "split": chosen.split,
        "position": chosen.position,
        "key": key,
        "size": list(image.size),
        "bytes": size,
        "sha256": pixel_hash(image),
    }
