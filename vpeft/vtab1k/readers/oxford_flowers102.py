"""Oxford 102 Flowers (Nilsback and Zisserman, ICVGIP 2008).

https://www.robots.ox.ac.uk/~vgg/data/flowers/102; its page states no licence.

As TFDS's oxford_flowers102 2.1.1 reads it: the key is the file name, such as `image_00001.jpg`; `setid.mat` numbers
the images of the splits from 1 and `imagelabels.mat` the classes from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpeft.data.matlab import Load, apart
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples
from vpeft.vtab1k.source import Example, Needed, locate

_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
ARCHIVES = (
    Needed(
        "102flowers.tgz",
        f"{_URL}/102flowers.tgz",
        sha256="2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        size=344_862_509,
    ),
    Needed(
        "imagelabels.mat",
        f"{_URL}/imagelabels.mat",
        sha256="4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
        size=502,
    ),
    Needed(
        "setid.mat",
        f"{_URL}/setid.mat",
        sha256="46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
        size=14_989,
    ),
)
HOW = ""
_SETS = {"train": "trnid", "validation": "valid", "test": "tstid"}
_CLASSES = 102


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (1,020), validation (1,020) and test (6,149).

    Raises:
        ValueError: A file is missing or damaged, an image has no label, or a label is out of range.
    """
    images, labels_file, sets_file = (locate(folder, needed, HOW) for needed in ARCHIVES)
    archive = Archive(images)
    with apart(f"fetch it again from {_URL}") as load:
        labels = _rows(load, labels_file, ["labels"])["labels"]
        sets = _rows(load, sets_file, list(_SETS.values()))

    def split(variable: str) -> list[Example]:
        wanted = []
        for number in sets[variable].tolist():
            if not 1 <= number <= len(labels):
                raise ValueError(f"{sets_file} lists the image {number}; {labels_file} has labels 1 to {len(labels)}.")
            name = f"image_{number:05d}.jpg"
            wanted.append((f"jpg/{name}", name, int(labels[number - 1]) - 1))
        return examples(archive, wanted, _CLASSES)

    return {name: split(variable) for name, variable in _SETS.items()}


def _rows(load: Load, path: Path, variables: Sequence[str]) -> dict[str, np.ndarray]:
    rows, name, found = {}, variables[0], load(path, variables)
    try:
        for name in variables:
            (row,) = found[name].astype(np.int64, casting="same_kind")
            rows[name] = row.reshape(len(row))
    except Exception as error:  # damaged bytes make arrays of any kind
        raise ValueError(
            f"{path} has no row '{name}' of whole numbers ({error!r:.400}); fetch it again from {_URL}."
        ) from error
    return rows
