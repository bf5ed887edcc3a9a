"""List images and their masks in a folder; nothing is decoded yet.

root/images/{train,val,test}/NAME.jpg  root/masks/{train,val,test}/NAME.png    parts that are there
root/images/{training,validation}/...  root/annotations/{training,validation}  as ADE20K has them
root/images/NAME.jpg                   root/masks/NAME.png                     cut here: every fifth image is for test
root/classes.txt                       a class a line, in the order of the ids
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpeft.data.folder import SHARE, SUFFIXES, find_images
from vpeft.data.images import printable
from vpeft.data.masks import ClassTable, ade20k, read_classes
from vpeft.data.ranking import ranked

# Other names that the same part has in published data sets.
_NAMES = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test", "testing")}
_MASKS = ("masks", "annotations", "labels")
# Fixed, and not the seed of the run: a test image stays one whatever is run.
_KEY = "vpeft-masks-0"


@dataclass(frozen=True)
class MaskedSplit:
    """Images and their masks, in a fixed order."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: MaskedSplit) -> MaskedSplit:
        return MaskedSplit(self.images + other.images, self.masks + other.masks)

    def take(self, positions: Iterable[int]) -> MaskedSplit:
        """The images and masks at these positions."""
        kept = list(positions)
        return MaskedSplit([self.images[i] for i in kept], [self.masks[i] for i in kept])


@dataclass(frozen=True)
class MaskedListing:
    """A segmentation data set on disk.

    Args:
        classes: Names and colours.
        train, val, test: The splits; `val` is empty where there is none, or where it is trained on.
        reduce_zero_label: How the masks on disk are read, as in `read_mask`.
        provenance: JSON-able facts for the result row.
    """

    classes: ClassTable
    train: MaskedSplit
    val: MaskedSplit
    test: MaskedSplit
    reduce_zero_label: bool
    provenance: dict[str, Any]


def pair(images: Path, masks: Path, names: Sequence[str] | None = None) -> MaskedSplit:
    """Every image below one folder with the mask of the same relative path, but for the suffix, below another.

    Args:
        images: Folder of images; subfolders are searched.
        masks: Folder of masks.
        names: Relative paths without suffix, in the order that is wanted, of data sets that list their parts in a
            file. Files that are not named are left out then.

    Raises:
        ValueError: A folder is missing or empty, an image has no mask or a mask no image, or two files have one name.
    """
    pictures, labels = _by_name(images), _by_name(masks)
    if names is None:
        if spare := sorted(labels.keys() - pictures.keys()):
            raise ValueError(
                f"The mask {labels[spare[0]]} has no image: {images} holds no {spare[0]}.* ({len(spare)} such). "
                "Restore the image or remove the mask."
            )
        names = sorted(pictures)
    for name in names:
        if name not in pictures:
            raise ValueError(f"{images} holds no image '{name}', which a list names; restore it or correct the list.")
        if name not in labels:
            bare = sum(name not in labels for name in names)
            raise ValueError(
                f"The image {pictures[name]} has no mask: {masks} holds no {name}.* ({bare} such). Restore the mask or "
                "remove the image."
            )
    return MaskedSplit([pictures[name] for name in names], [labels[name] for name in names])


def read(
    root: Path, name: str, split: Literal["train", "trainval"], classes: ClassTable | None = None
) -> MaskedListing:
    """List the images and masks of a folder.

    Without a test part, val is the test, as in the published results on ADE20K: nothing is chosen on it, and there
    is no val. Without any part, a fifth is the test and, for `train`, a fifth of the rest val.

    Args:
        root: The directory.
        name: What the result row calls it.
        split: `trainval` trains on val too, where there is one beside the test.
        classes: The table; None reads root/classes.txt.

    Raises:
        ValueError: A folder, a part, a mask or the table is missing.
    """
    images, masks = root / "images", next((root / word for word in _MASKS if (root / word).is_dir()), root / _MASKS[0])
    parts = {part: _part(images, masks, part) for part in _NAMES}
    train, val, test = (parts[part] or MaskedSplit() for part in _NAMES)
    note = None
    if not any(parts.values()):
        train, test = _hold_out(pair(images, masks), images, f"{_KEY}-test")
        note = "test is a fifth of the images, chosen by the hash of the file's path"
        if split == "train":
            train, val = _hold_out(train, images, f"{_KEY}-val")
    elif not train or not (test or val):
        lacking = "train" if not train else "val and no test"
        raise ValueError(
            f"{images} has no {lacking}; it needs images/train and images/val or images/test, and the masks under the "
            f"same names in {masks}."
        )
    elif not test:
        val, test, note = test, val, "test is the validation part, on which nothing is chosen"
    if split == "trainval":
        train, val = train + val, MaskedSplit()
    provenance = {
        "format": "folder",
        "task": name,
        "group": None,
        "synthetic": False,
        "split": split,
        "lossy": False,
        "warning": None,
        "statement": note,
        "licence": None,
        "packages": [],
    }
    return MaskedListing(classes or read_classes(root / "classes.txt"), train, val, test, False, provenance)


def read_ade20k(root: Path, split: Literal["train", "trainval"] = "trainval") -> MaskedListing:
    """ADE20K's scene parsing benchmark as data_prep/ade20k.py leaves it: ids 1 to 150, 0 ignored, 2,000 to test on.

    Raises:
        ValueError: As `read`.
    """
    found = read(root, "ade20k", split, ade20k())
    provenance = found.provenance | {"format": "ade20k", "lossy": True}
    return MaskedListing(found.classes, found.train, found.val, found.test, True, provenance)


def _part(images: Path, masks: Path, part: str) -> MaskedSplit | None:
    name = next((name for name in _NAMES[part] if (images / name).is_dir()), None)
    return None if name is None else pair(images / name, masks / name)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; images are in images/ and their masks in masks/, under the same names.")
    found: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(
                f"{printable(found[name])} and {printable(path)} differ only in their suffix; keep one of them."
            )
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no image ({' '.join(SUFFIXES)}); put some there.")
    return found


def _hold_out(split: MaskedSplit, folder: Path, key: str) -> tuple[MaskedSplit, MaskedSplit]:
    if len(split) < 2:
        raise ValueError(f"{folder} holds one image; it takes at least one to train on and one to test on.")
    names = [image.relative_to(folder).as_posix() for image in split.images]
    order = ranked(range(len(split)), key, names)
    count = max(1, round(SHARE * len(split)))
    return split.take(sorted(order[count:])), split.take(sorted(order[:count]))
