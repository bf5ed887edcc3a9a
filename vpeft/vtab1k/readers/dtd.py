"""Describable Textures Dataset, 47 textures (Cimpoi et al., CVPR 2014, arXiv:1311.3618).

https://www.robots.ox.ac.uk/~vgg/data/dtd; made available for research purposes.

As TFDS's dtd 3.0.1 reads it: the first of the ten official folds; the key is a line of its list, such as
`banded/banded_0002.jpg`, and the label the rank of the folder.
"""

from __future__ import annotations

from pathlib import Path

from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples, lines, ranks
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "dtd-r1.0.1.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
        size=625_239_812,
    ),
)
HOW = ""
_LISTS = {"train": "train1.txt", "validation": "val1.txt", "test": "test1.txt"}
_CLASSES = 47


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train, validation and test; 1,880 each.

    Raises:
        ValueError: The archive is missing, or lacks a list or an image that a list names.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    images = "dtd/images"
    label = ranks({name.split("/")[2] for name in archive.below(images)}, _CLASSES, archive.path)

    def split(file: str) -> list[Example]:
        listed = lines(archive.read(f"dtd/labels/{file}"), f"'{file}' in {archive.path}")
        wanted = ((f"{images}/{name}", name, label.get(name.split("/")[0], -1)) for name in listed)
        return examples(archive, wanted, _CLASSES)

    return {name: split(file) for name, file in _LISTS.items()}
