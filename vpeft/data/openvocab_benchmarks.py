"""The published data sets of open-vocabulary segmentation, as SAN's official code lays them out, and their class names.

A name is used as a prompt as it is: "road, route" and "person, individual, someone, somebody, mortal, soul" are each
one prompt, and PASCAL's are "diningtable" and "pottedplant". Tidier names score differently and are not comparable.

    ade150         ADEChallengeData2016/images/validation       annotations/validation               8 bits, 0 ignored
    ade847         ADE20K_2021_17_01/images_detectron2/...      annotations_detectron2/...           16 bits, 65535
    pc59           pcontext/val/image                           pcontext/val/label                   8 bits, 255
    pc459          pcontext_full/val/image                      pcontext_full/val/label              16 bits, 65535
    voc20          VOC2012/JPEGImages                           SegmentationClass, ImageSets/...     0 and 255 ignored
    coco_stuff171  coco/val2017                                 coco/stuffthingmaps/val2017          as in its archive
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from vpeft.data.images import UnreadableImage, checked, open_image, why
from vpeft.data.masked import MaskedSplit, pair
from vpeft.data.masked import read as read_folder
from vpeft.data.masks import ClassTable, read_classes, read_mask
from vpeft.nearest import did_you_mean

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Args:
        folder: Its folder under the root.
        images, masks: Under its folder, with {} for the part.
        parts: What the parts are called there.
        counts: Images of the parts, as the official logs give them.
        list: File that names the images of a part, with {} for it; None takes all files.
        reduce_zero_label: Id 0 is ignored and k is class k - 1.
        drop_empty: Leave out images of which no pixel has a class.
        by_category: Ids are those of COCO's categories less 1, with gaps.
        made_by: What makes the layout.
    """

    folder: str
    images: str
    masks: str
    parts: dict[Part, str]
    counts: dict[Part, int]
    list: str | None = None
    reduce_zero_label: bool = False
    drop_empty: bool = False
    by_category: bool = False
    made_by: str = "the archive as it is published"


_CONTEXT = "prepare_pcontext_sem_seg_{}cls.py of github.com/MendelXu/SAN"

BENCHMARKS: dict[str, Benchmark] = {
    "ade150": Benchmark(
        "ADEChallengeData2016",
        "images/{}",
        "annotations/{}",
        {"train": "training", "val": "validation"},
        {"train": 20_210, "val": 2_000},
        reduce_zero_label=True,
        made_by="data_prep/ade20k.py",
    ),
    "ade847": Benchmark(
        "ADE20K_2021_17_01",
        "images_detectron2/{}",
        "annotations_detectron2/{}",
        {"val": "validation"},
        {"val": 2_000},
        made_by="prepare_ade20k_full_sem_seg.py of github.com/facebookresearch/MaskFormer",
    ),
    "pc59": Benchmark("pcontext", "{}/image", "{}/label", {"val": "val"}, {"val": 5_104}, made_by=_CONTEXT.format(59)),
    "pc459": Benchmark(
        "pcontext_full", "{}/image", "{}/label", {"val": "val"}, {"val": 5_104}, made_by=_CONTEXT.format(459)
    ),
    "voc20": Benchmark(
        "VOC2012",
        "JPEGImages",
        "SegmentationClass",
        {"train": "train", "val": "val"},
        {"train": 1_464, "val": 1_449},
        list="ImageSets/Segmentation/{}.txt",
        reduce_zero_label=True,
        drop_empty=True,
    ),
    "coco_stuff171": Benchmark(
        "coco",
        "{}2017",
        "stuffthingmaps/{}2017",
        {"train": "train", "val": "val"},
        {"train": 118_287, "val": 5_000},
        by_category=True,
    ),
}

# Categories of COCO-Stuff, numbered from 1, that no image has.
_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_CATEGORIES = [number for number in range(1, 183) if number not in _GAPS]


@dataclass(frozen=True)
class Labelled:
    """Images and masks of one part of a data set, and what its classes are called.

    Args:
        name: Of the data set.
        table: Its classes; what is ignored is `table.ignore`: 255, or 65535 where 255 is a class.
        files: Images and masks.
        read: A mask file -> class ids [H, W].
    """

    name: str
    table: ClassTable
    files: MaskedSplit
    read: Callable[[Path], np.ndarray]


def class_names(name: str) -> tuple[str, ...]:
    """The names of a published data set, in the order of their ids.

    Raises:
        ValueError: there is no such data set.
    """
    return _table(name).names


def locate(name: str, root: Path, part: Part, check_counts: bool = True) -> Labelled:
    """List a published data set, or a folder of one's own with images/, masks/ and classes.txt.

    Args:
        name: A key of BENCHMARKS, or the path of a folder.
        root: Folder of the published data sets, or the folder of this one.
        part: Of a folder of one's own, `val` is its test part.
        check_counts: Whether another number of images than was published is refused.

    Raises:
        ValueError: no such data set, part or folder, masks and images do not match, or the number of images is wrong.
    """
    if name not in BENCHMARKS:
        return _own(name, part)
    known = BENCHMARKS[name]
    if part not in known.parts:
        raise ValueError(f"{name} has no {part} part here; it has {', '.join(known.parts)}.")
    top = root / known.folder if (root / known.folder).is_dir() else root
    word = known.parts[part]
    images, masks = top / known.images.format(word), top / known.masks.format(word)
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(
                f"{name}: {folder} is missing. data.root holds {known.folder}/, which comes from {known.made_by}."
            )
    files = pair(images, masks, _listed(top / known.list.format(word)) if known.list else None)
    if check_counts and len(files) != known.counts[part]:
        raise ValueError(
            f"{name}: {images} and {masks} hold {len(files)} images of {part}, and {known.counts[part]} are published. "
            "Make them again, or set data.check_counts false and do not compare the result."
        )
    read = _Reader(_table(name), known)
    if known.drop_empty:
        files = files.take(i for i, mask in enumerate(files.masks) if (read(mask) != read.table.ignore).any())
    return Labelled(name, read.table, files, read)


@dataclass(frozen=True)
class _Reader:
    """Reads a mask file; an object, so that worker processes can be sent it."""

    table: ClassTable
    known: Benchmark

    def __call__(self, path: Path) -> np.ndarray:
        if self.known.by_category:
            return _by_category(path, self.table.ignore)
        return read_mask(path, self.table, self.known.reduce_zero_label)


def _by_category(path: Path, ignore: int) -> np.ndarray:
    try:
        with open_image(checked(path)) as opened:
            mode, found = opened.mode, np.asarray(opened)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        raise UnreadableImage(f"{path} could not be read as a mask ({why(error)}); restore or remove it.") from error
    if mode not in ("L", "P"):
        raise ValueError(
            f"{path} is no mask of COCO-Stuff: its pixels are of the kind {mode}, and 8 bits are expected. "
            "Unpack its archive again."
        )
    classes = _class_of_id(ignore)[found]
    if (strange := found[(classes == ignore) & (found != ignore)]).size:
        raise ValueError(
            f"{path} has the id {strange[0]}, which is no category of COCO-Stuff less 1. Unpack its archive again."
        )
    return classes


@cache
def _class_of_id(ignore: int) -> np.ndarray:
    classes = np.full(256, ignore, np.uint8)
    classes[np.array(_CATEGORIES) - 1] = np.arange(len(_CATEGORIES))
    return classes


@cache
def _table(name: str) -> ClassTable:
    if name not in BENCHMARKS:
        raise ValueError(f"There is no data set '{name}'; {did_you_mean(name, BENCHMARKS)}")
    return read_classes(Path(__file__).with_name("names") / f"{name}.txt")


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing, which lists the images; unpack the archive again.")
    try:
        return path.read_text("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); unpack the archive again.") from error


def _own(name: str, part: Part) -> Labelled:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"There is no data set '{name}'; {did_you_mean(name, BENCHMARKS)} A folder of your own is given by its "
            "path; it holds images/, masks/ and classes.txt."
        )
    listing = read_folder(folder, folder.resolve().name, "train")
    files = listing.train if part == "train" else listing.test
    return Labelled(folder.resolve().name, listing.classes, files, _Own(listing.classes))


@dataclass(frozen=True)
class _Own:
    table: ClassTable

    def __call__(self, path: Path) -> np.ndarray:
        return read_mask(path, self.table)
