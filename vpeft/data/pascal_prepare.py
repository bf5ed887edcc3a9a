"""Make of a PASCAL_MT download what vpeft.data.pascal_context reads: the parts of people, and where normals count.

Both lie in MATLAB files; they become PNG files beside them once. The numbers are those of the public multi-task codes
(scale-lab/MTLoRA @ 333a375, from ASTMT).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpeft.data.images import upright_size
from vpeft.data.matlab import Load, apart
from vpeft.data.pascal_context import COUNTS, FOLDERS, find, identifiers, indices
from vpeft.fetch import write_atomic

PERSON = 15
# 24 annotated parts of a person, as the six that are predicted.
SIX: dict[str, int] = {
    **dict.fromkeys(["hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"], 1),
    **dict.fromkeys(["neck", "torso"], 2),
    **dict.fromkeys(["luarm", "ruarm"], 3),
    **dict.fromkeys(["lhand", "llarm", "rhand", "rlarm"], 4),
    **dict.fromkeys(["luleg", "ruleg"], 5),
    **dict.fromkeys(["lfoot", "llleg", "rfoot", "rlleg"], 6),
}
# Classes of PASCAL-Context's 459 that NYUv2 knows too: the distilling network has seen them indoors.
# fmt: off
VALID = frozenset((
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53,
    55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113,
    115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193,
    195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250,
    251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293,
    295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357,
    368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421,
    423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
))
# fmt: on


def parts(anno: Any, size: tuple[int, int]) -> np.ndarray:
    """Parts of all people in an image, [H, W] uint8; 0 where there are none.

    Args:
        anno: What scipy reads under `anno` in human_parts/ID.mat: a struct whose second field lists objects (name,
            class, mask, parts), each part with name and mask.
        size: (H, W) of the image.

    Raises:
        ValueError: a part is unknown, or a mask has another size.
    """
    found = np.zeros(size, np.uint8)
    for thing in anno[0][0][1][0]:
        if int(thing[1][0][0]) != PERSON or not len(thing[3]):
            continue
        for part in thing[3][0]:
            name, mask = str(part[0][0]), np.asarray(part[1]).astype(bool)
            if name not in SIX:
                raise ValueError(f"there is no part '{name}' of a person; there are {', '.join(sorted(SIX))}.")
            if mask.shape != size:
                raise ValueError(f"the mask of {name} is {mask.shape[1]}x{mask.shape[0]}, not {size[1]}x{size[0]}.")
            found[mask] = SIX[name]
    return found


def valid(labels: np.ndarray) -> np.ndarray:
    """255 where normals are believed, else 0: [H, W] uint8 of LabelMap [H, W]."""
    return np.isin(labels, list(VALID)).astype(np.uint8) * 255


def prepare(root: Path, load: Load | None = None) -> Iterator[tuple[int, int]]:
    """Write the PNG files that are missing; yields (done, all). It can be stopped at any time and goes on.

    Args:
        root: The download.
        load: Reads a MATLAB file; None is SciPy, in a process of its own.

    Raises:
        ValueError: something of the download is missing or damaged.
    """
    if load is None:
        with apart("unpack the download again") as load:
            yield from prepare(root, load)
        return
    names = [name for part in COUNTS for name in identifiers(root, part)]
    for done, name in enumerate(names):
        yield done, len(names)
        file = root / FOLDERS["human_parts"][0] / f"{name}.png"
        if not file.is_file():
            people, size = file.with_suffix(".mat"), _size(root, name)
            found = load(people)
            try:
                mask = parts(found["anno"], size)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{people}: {str(error).rstrip('.'):.400}; unpack the download again.") from error
            _write(file, mask)
        file = root / FOLDERS["valid"][0] / f"{name}.png"
        if not file.is_file():
            labels = root / "pascal-context" / "trainval" / f"{name}.mat"
            found = load(labels)
            try:
                mask = valid(np.asarray(found["LabelMap"]).astype(np.int64))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{labels}: {str(error).rstrip('.'):.400}; unpack the download again.") from error
            _write(file, mask)
    yield len(names), len(names)


def verify(root: Path) -> list[str]:
    """Sentences about what is not as it should be; none if all is."""
    faults: list[str] = []
    for part, count in COUNTS.items():
        names = identifiers(root, part)
        if len(names) != count:
            faults.append(f"{part}.txt names {len(names)} images, and the published split has {count}.")
        for name in names:
            try:
                files = {task: find(root, task, name) for task in FOLDERS}
                for task, classes in (("semseg", 21), ("human_parts", 7)):
                    indices(files[task], classes)
                _size(root, name)
            except ValueError as error:
                faults.append(str(error))
    return faults


def _size(root: Path, name: str) -> tuple[int, int]:
    file = root / "JPEGImages" / f"{name}.jpg"
    return upright_size(file)


def _write(file: Path, array: np.ndarray) -> None:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "png")
    write_atomic(file, data.getvalue())
