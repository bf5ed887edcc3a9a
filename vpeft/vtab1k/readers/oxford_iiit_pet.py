"""Oxford-IIIT Pet, 37 breeds (Parkhi et al., CVPR 2012).

https://www.robots.ox.ac.uk/~vgg/data/pets; CC BY-SA 4.0.

As TFDS's oxford_iiit_pet 3.2.0 reads it: the key is the file name, such as `Abyssinian_100.jpg`; `trainval.txt` and
`test.txt` have lines of name, class from 1, species and breed of the species. Version 4.0.0 has the same keys, but
stores twelve images again as JPEG, whose files the older one gives as they are, and so does this reader.
"""

from __future__ import annotations

import re
from pathlib import Path

from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples, lines
from vpeft.vtab1k.source import Example, Needed, locate

_URL = "https://thor.robots.ox.ac.uk/~vgg/data/pets"
ARCHIVES = (
    Needed(
        "images.tar.gz",
        f"{_URL}/images.tar.gz",
        sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
        size=791_918_971,
    ),
    Needed(
        "annotations.tar.gz",
        f"{_URL}/annotations.tar.gz",
        sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
        size=19_173_078,
    ),
)
HOW = ""
_LISTS = {"train": "trainval.txt", "test": "test.txt"}
_CLASSES = 37


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (3,680) and test (3,669).

    Raises:
        ValueError: An archive is missing, lacks a list or an image that a list names, or a line is malformed.
    """
    images, annotations = (Archive(locate(folder, needed, HOW)) for needed in ARCHIVES)

    def split(file: str) -> list[Example]:
        wanted = []
        for line in lines(annotations.read(f"annotations/{file}"), f"'{file}' in {annotations.path}"):
            fields = line.split(" ")
            if len(fields) != 4 or not re.fullmatch(r"\d{1,9}", fields[1]):
                raise ValueError(
                    f"{annotations.path}: {file} has the line '{line}'; expected name, class, species and breed."
                )
            wanted.append((f"images/{fields[0]}.jpg", f"{fields[0]}.jpg", int(fields[1]) - 1))
        return examples(images, wanted, _CLASSES)

    return {name: split(file) for name, file in _LISTS.items()}
