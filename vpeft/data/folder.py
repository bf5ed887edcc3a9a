"""Read a directory with one folder a class.

root/train/CLASS/*  root/test/CLASS/*  and, if there, root/val/CLASS/*
root/CLASS/*        cut here: every fifth image of a class is for the test
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vpeft.data.images import printable
from vpeft.data.listing import Listing, Split, hold_out

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SHARE = 0.2
# Fixed, and not the seed of the run: a test image stays one whatever is run.
_KEY = "vpeft-folder-0"


def read(root: Path, name: str, split: Literal["train800", "train800val200"]) -> Listing:
    """List files and labels; classes are the folders' names in sorted order.

    Args:
        root: The directory.
        name: What the result row calls it.
        split: `train800val200` trains on all training images; `train800` evaluates on val/ while it
            trains, or, without one, on a fifth of the training images.

    Raises:
        ValueError: A split or every class is missing, a class folder is empty, is a link that leads nowhere or has a
            name that is no UTF-8, two differ only in case, or val/ or test/ has a class that train/ lacks.
    """
    sorted_out = (root / "train").is_dir()
    if not sorted_out and any((root / part).is_dir() for part in ("test", "val")):
        raise ValueError(f"{root} has test/ or val/ but no train/; it needs train/CLASS/ and test/CLASS/.")
    if sorted_out and not (root / "test").is_dir():
        raise ValueError(f"{root} has train/ but no test/; move images that nothing is chosen on to {root / 'test'}.")
    notes = []
    classes = _class_names(root / "train" if sorted_out else root)
    train = _read_split(root / "train" if sorted_out else root, classes)
    val, test = Split(), Split()
    if sorted_out:
        test = _read_split(root / "test", classes, partial=True)
        val = _read_split(root / "val", classes, partial=True) if (root / "val").is_dir() else val
    else:
        train, test = hold_out(train, _names(train, root), SHARE, f"{_KEY}-test")
        notes.append("test is a fifth of every class, chosen by the hash of the file's path.")
    if split == "train800val200":
        train, val = train + val, Split()
    elif not val:
        train, val = hold_out(train, _names(train, root), SHARE, f"{_KEY}-val")
        notes.append("val is a fifth of the training images of every class, chosen by the hash of the file's path.")
    provenance = {
        "format": "folder",
        "task": name,
        "group": None,
        "synthetic": False,
        "split": split,
        "lossy": False,
        "warning": None,
        "statement": " ".join(notes) or None,
        "licence": None,
        "packages": [],
    }
    return Listing(classes, train, val, test, provenance)


def looks_like_one(root: Path) -> bool:
    """Whether there is a class folder with an image directly under `root` or `root/train`."""
    top = root / "train" if (root / "train").is_dir() else root
    return any(find_images(top / name) for name in _folders(top))


def find_images(folder: Path) -> list[Path]:
    """Every image below a folder, by its suffix, in sorted order.

    Hidden files and folders are left out (macOS's `._a.jpg`, Jupyter's checkpoints). A link to a file is followed, a
    link to a folder within `folder` is not: it could lead back here.

    Raises:
        OSError: A folder may not be read.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, file) for file in files if _is_image(file)]
    return sorted(found)


def _class_names(top: Path) -> list[str]:
    names = _folders(top)
    if len(names) < 2:
        found = f"one folder, {names[0]}" if names else "no folder"
        raise ValueError(f"{top} has {found}; a classifier needs at least two folders, one a class.")
    by_lower: dict[str, str] = {}
    for name in names:
        if (twin := by_lower.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f"{top} has the class folders '{twin}' and '{name}', which differ only in case; join them."
            )
    return names


def _read_split(top: Path, classes: list[str], partial: bool = False) -> Split:
    present = _folders(top)
    if extra := sorted(set(present) - set(classes)):
        raise ValueError(f"{top} has the class folder '{extra[0]}', which the training images lack: {classes[:5]} ...")
    found = Split()
    for label, name in enumerate(classes):
        if partial and name not in present:
            continue
        files = find_images(top / name)
        if not files:
            raise ValueError(f"The class folder {top / name} holds no image ({' '.join(SUFFIXES)}); fill or remove it.")
        found.files.extend(files)
        found.labels.extend([label] * len(files))
    if not found:
        raise ValueError(f"{top} holds none of the class folders {classes[:5]}; it needs {top}/CLASS/.")
    return found


def _folders(top: Path) -> list[str]:
    """Names of the class folders, sorted; one may be a link to a folder elsewhere."""
    found = []
    for entry in top.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not _leads_somewhere(entry):
            raise ValueError(f"{printable(entry)} is a link that leads nowhere; repair or remove it.")
        if entry.is_dir():
            if entry.name != printable(entry.name):
                raise ValueError(
                    f"The class folder {printable(entry)} has a name that is no UTF-8 or cannot be printed; rename it."
                )
            found.append(entry.name)
    return sorted(found)


def _leads_somewhere(link: Path) -> bool:
    try:
        return link.exists()
    except OSError:  # through too many links
        return False


def _refuse(error: OSError) -> None:
    raise error  # os.walk would leave out what it may not read


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _names(split: Split, root: Path) -> Sequence[str]:
    return [file.relative_to(root).as_posix() for file in split.files]
