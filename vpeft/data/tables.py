"""What the tasks are: group and classes of VTAB-1k's 19 tasks and of the embedded ones.

Class counts come from here and never from labels seen: 1,000 training images need not show every class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vpeft.nearest import did_you_mean

Group = Literal["natural", "specialized", "structured"]


@dataclass(frozen=True)
class Task:
    """One classification task.

    Args:
        group: VTAB's group.
        classes: Names in label order; numbered where the data set names none here.
        test: Images in the test split.
        folder: Name of the task's folder in the community layout, where it is not the task's own.
        synthetic: Drawn by a program; no camera or hand was involved.
    """

    group: Group
    classes: tuple[str, ...]
    test: int
    folder: str | None = None
    synthetic: bool = False


def _numbered(count: int, word: str = "class") -> tuple[str, ...]:
    return tuple(f"{word} {i}" for i in range(count))


_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_EUROSAT = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
_CLEVR_DISTANCES = ("below 8.0", "8.0 to 8.5", "8.5 to 9.0", "9.0 to 9.5", "9.5 to 10.0", "above 10.0")

VTAB: dict[str, Task] = {
    "caltech101": Task("natural", _numbered(102), 6084),
    "cifar100": Task("natural", tuple(_CIFAR100.split()), 10_000, folder="cifar"),
    "dtd": Task("natural", _numbered(47), 1880),
    "oxford_flowers102": Task("natural", _numbered(102), 6149),
    "oxford_iiit_pet": Task("natural", _numbered(37), 3669),
    "sun397": Task("natural", _numbered(397), 21_750),
    "svhn": Task("natural", tuple("0123456789"), 26_032),
    "patch_camelyon": Task("specialized", ("no tumour", "tumour"), 32_768),
    "eurosat": Task("specialized", _EUROSAT, 5400),
    "resisc45": Task("specialized", _numbered(45), 6300),
    "diabetic_retinopathy": Task("specialized", _numbered(5, "grade"), 42_670),
    "clevr_count": Task("structured", tuple(f"{n} objects" for n in range(3, 11)), 15_000, synthetic=True),
    "clevr_dist": Task("structured", _CLEVR_DISTANCES, 15_000, synthetic=True),
    "dmlab": Task("structured", _numbered(6), 22_735, synthetic=True),
    "kitti": Task("structured", ("below 8 m", "8 to 20 m", "above 20 m", "no vehicle"), 711),
    "dsprites_loc": Task("structured", _numbered(16, "column"), 73_728, synthetic=True),
    "dsprites_ori": Task("structured", _numbered(16, "orientation"), 73_728, synthetic=True),
    "smallnorb_azi": Task("structured", _numbered(18, "azimuth"), 12_150),
    "smallnorb_ele": Task("structured", _numbered(9, "elevation"), 12_150),
}

_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
_CELLS = tuple(f"row {row} column {column}" for row in range(1, 5) for column in range(1, 5))
_CELL_DEFECTS = ("functional", "possibly defective", "probably defective", "defective")

EMBEDDED: dict[str, Task] = {
    "digits": Task("natural", tuple("0123456789"), 1000),
    "silhouettes": Task("natural", _ANIMALS, 1000),
    "fashion": Task("natural", _CLOTHES, 1000),
    "textile": Task("specialized", ("nominal", "local defect", "global defect"), 1000, synthetic=True),
    "elpv": Task("specialized", _CELL_DEFECTS, 1000),
    "easyvqa_shape": Task("structured", ("circle", "rectangle", "triangle"), 944, synthetic=True),
    "easyvqa_colour": Task("structured", _COLOURS, 920, synthetic=True),
    "easyvqa_position": Task("structured", _CELLS, 1000, synthetic=True),
}

ALIASES = {"cifar": "cifar100"}


def find_task(name: str) -> tuple[str, Task]:
    """The task's own name and its entry, from either table.

    Raises:
        ValueError: No table has it; names the near matches.
    """
    name = ALIASES.get(name, name)
    if task := EMBEDDED.get(name) or VTAB.get(name):
        return name, task
    raise ValueError(
        f"data.task '{name}' is not known; {did_you_mean(name, [*EMBEDDED, *VTAB])} (Images of your own need no entry: "
        "set data.root to a folder with train/CLASS/ and test/CLASS/, or with one folder a class, and data.format to "
        "folder.)"
    )
