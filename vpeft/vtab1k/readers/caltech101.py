"""Caltech 101, pictures of objects and one class of others (Fei-Fei et al., CVPR workshop 2004).

https://doi.org/10.22002/D1.20086; CC BY 4.0.

As TFDS's caltech101 3.0.x reads it: the key is folder and file, such as `accordion/image_0001.jpg`, and the label the
rank of the folder in small letters. NumPy's generator with seed 1234 draws 30 files of each folder for train; the
others are test. The background's folder has a file `tmp` that is drawn from but is no image.

TFDS draws in the order in which the file system lists the folders and their files, so that its split differs from
disk to disk. Here it is the alphabetical order, which gives VTAB's sizes (3,060 and 6,084); in TFDS's catalogue `tmp`
was drawn, so that there are 3,059 and 6,085.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from vpeft.fetch import stays_inside
from vpeft.vtab1k.archives import Archive, decode
from vpeft.vtab1k.readers.members import ranks
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "caltech-101.zip",
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1",
        sha256="331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
        size=137_414_764,
    ),
)
HOW = ""
_INNER = "caltech-101/101_ObjectCategories.tar.gz"
_CLASSES = 102
_TRAIN = 30


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (30 a class) and test; the 131 MB of images are held in memory.

    Raises:
        ValueError: The archive is missing or damaged, or a class is missing or has fewer than 30 files.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    folders: dict[str, dict[str, bytes]] = defaultdict(dict)
    for name, data in _files(archive).items():
        folders[name.parent.name][name.name] = data
    label = ranks({name.lower() for name in folders}, _CLASSES, archive.path)
    draw = np.random.RandomState(1234)
    splits: dict[str, list[Example]] = {"train": [], "test": []}
    for name in sorted(folders):
        files = sorted(folders[name])
        if len(files) < _TRAIN:
            raise ValueError(f"{archive.path} has {len(files)} files in the folder {name}; {_TRAIN} are drawn of each.")
        drawn = set(draw.choice(files, _TRAIN, replace=False).tolist())
        for file in (file for file in files if file.endswith(".jpg")):
            image = partial(decode, folders[name][file], f"'{name}/{file}' of Caltech 101")
            splits["train" if file in drawn else "test"].append(Example(f"{name}/{file}", label[name.lower()], image))
    return splits


def _files(archive: Archive) -> dict[PurePosixPath, bytes]:
    """Files two folders deep in the tar inside the zip."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive.read(_INNER)), mode="r:gz") as opened:
            files = {}
            for info in opened:
                if not stays_inside(info.name):
                    raise ValueError(
                        f"{_INNER} in {archive.path} has the member '{info.name}', which leads out of the archive; "
                        "it is not used."
                    )
                if not (info.isfile() or info.isdir()):
                    raise ValueError(
                        f"{_INNER} in {archive.path} has the member '{info.name}', which is a link or a device; "
                        "Caltech 101 has none, so it is not used."
                    )
                name = PurePosixPath(info.name)
                if len(name.parts) == 3 and (stored := opened.extractfile(info)):
                    files[name] = stored.read()
            return files
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{_INNER} in {archive.path} is not a whole tar archive ({error}); fetch it again.") from error
