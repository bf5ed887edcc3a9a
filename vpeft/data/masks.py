"""Masks: files of class ids, or of the classes' colours, checked against a table of classes.

K classes; H W size of a mask
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageOps

from vpeft.data.images import UnreadableImage, checked, open_image, printable, why

IGNORE, IGNORE_16 = 255, 65_535
Colour = tuple[int, int, int]

_LINE = re.compile(r"(?P<name>.*?)\s*(?:#(?P<colour>[0-9a-fA-F]{6}))?")


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes, in the order of their ids.

    Args:
        names: Distinct and not empty.
        colours: RGB of each class.
        coloured: Whether the colours were given, so that RGB masks in them can be read.

    Raises:
        ValueError: There is no class, one has no name, or one is named twice.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    coloured: bool = True

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("The list of classes is empty; name one class a line, in the order of their ids.")
        for position, name in enumerate(self.names):
            if not name.strip():
                raise ValueError(f"Class {position} has no name; give every class one.")
            if (first := self.names.index(name)) < position:
                raise ValueError(f"The class '{name}' is named twice, for ids {first} and {position}; rename one.")

    @staticmethod
    def of(names: tuple[str, ...] | list[str]) -> ClassTable:
        """A table in the colours of PASCAL VOC."""
        return ClassTable(tuple(names), tuple(voc_colour(i + 1) for i in range(len(names))), coloured=False)

    @property
    def ignore(self) -> int:
        """Id of pixels without a class: 255, or 65535 where 255 is a class."""
        return IGNORE if len(self.names) <= IGNORE else IGNORE_16


def read_classes(path: Path) -> ClassTable:
    """The table in a text file: a name a line, and after it, if wanted, the colour as `#rrggbb`.

    Raises:
        ValueError: The file is missing or empty, a class is named twice, or only some have colours.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; write one class name a line into it, in the order of the masks' ids.")
    try:
        lines = [_LINE.fullmatch(line.strip()) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    names, colours = ([line[group] for line in lines if line] for group in ("name", "colour"))
    try:
        if not any(colours):
            return ClassTable.of(names)
        if not all(colours):
            raise ValueError(f"Class '{names[colours.index(None)]}' has no colour and others have; add '#rrggbb'.")
        return ClassTable(tuple(names), tuple(_rgb(colour) for colour in colours))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@functools.cache
def ade20k() -> ClassTable:
    """The 150 classes of ADE20K's scene parsing benchmark in their official order and colours."""
    return read_classes(Path(__file__).with_name("ade20k.txt"))


def voc_colour(number: int) -> Colour:
    """PASCAL VOC's colour of an id: its bits, three at a time, become the high bits of R, G and B."""
    levels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            levels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return levels[0], levels[1], levels[2]


def read_mask(path: Path, classes: ClassTable, reduce_zero_label: bool = False) -> np.ndarray:
    """Class ids [H, W], uint8 (uint16 for more than 255 classes), `classes.ignore` where there is no class.

    Args:
        path: 8-bit or 16-bit ids, a palette image (its indices), or RGB in the colours of `classes`.
        reduce_zero_label: Id 0 becomes ignored and k becomes k - 1.

    Raises:
        UnreadableImage: The file is no whole image.
        ValueError: It has an id or a colour outside the table, or is no mask; the message has path and id.
    """
    mode, found = _decode(path)
    if mode in ("RGB", "RGBA"):
        ids = _from_colours(found[..., :3], path, classes)
    else:
        ids = _checked(_widened(found, mode, path, classes), path, classes, int(reduce_zero_label))
    return ids.astype(np.uint8 if classes.ignore == IGNORE else np.uint16)


def _checked(ids: np.ndarray, path: Path, classes: ClassTable, first: int) -> np.ndarray:
    """Ids on disk, which begin at `first`, become ids of the table."""
    known = (ids >= first) & (ids < first + len(classes.names))
    if (outside := ids[~(known | (ids < first) & (ids >= 0) | (ids == classes.ignore))]).size:
        raise ValueError(
            f"{path} has the id {outside[0]}, but the table has {len(classes.names)} classes: ids {first} to "
            f"{len(classes.names) + first - 1}, and {classes.ignore} for ignored pixels{' and 0' if first else ''}. "
            "Correct the mask or add the class."
        )
    return np.where(known, ids - first, classes.ignore)


def _decode(path: Path) -> tuple[str, np.ndarray]:
    try:
        with open_image(checked(path)) as opened:
            turned = ImageOps.exif_transpose(opened)  # as its image is
            return turned.mode, np.asarray(turned)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        raise UnreadableImage(
            f"{printable(path)} could not be read as a mask ({why(error)}); restore or remove it."
        ) from error


def _widened(found: np.ndarray, mode: str, path: Path, classes: ClassTable) -> np.ndarray:
    if mode.startswith("I"):  # 16 bits
        found = found.astype(np.int64)
        return np.where(found == IGNORE_16, classes.ignore, found)
    if mode not in ("L", "P", "1"):
        raise ValueError(f"{path} is no mask: its pixels are of the kind {mode}; save class ids as 8-bit or 16-bit.")
    if classes.ignore != IGNORE:
        raise ValueError(
            f"{path} has 8 bits a pixel, but of {len(classes.names)} classes 255 is one; save 16 bits, with 65535 for "
            "ignored pixels."
        )
    return found.astype(np.int64)


def _from_colours(rgb: np.ndarray, path: Path, classes: ClassTable) -> np.ndarray:
    if not classes.coloured:
        raise ValueError(
            f"{path} is an RGB image where class ids are due. Save ids as one 8-bit channel, or write the colours "
            "behind the names in classes.txt, as in 'road #804080'."
        )
    known = np.array([_packed(np.array(colour)) for colour in classes.colours])
    if len(set(known.tolist())) < len(known):
        raise ValueError(f"{path} is an RGB image, and two classes of its table have one colour; save class ids.")
    wanted = _packed(rgb)
    order = np.argsort(known)
    place = order[np.searchsorted(known, wanted, sorter=order).clip(0, len(known) - 1)]
    missing = known[place] != wanted
    # Black and white are what masks leave unlabelled pixels in.
    ignored = missing & ((wanted == 0) | (wanted == 0xFFFFFF))
    if (strange := wanted[missing & ~ignored]).size:
        raise ValueError(f"{path} has the colour #{int(strange[0]):06x}, which no class has; correct it or the table.")
    return np.where(ignored, classes.ignore, place)


def _packed(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _rgb(colour: str) -> Colour:
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue
