"""CLEVR v1.0, rendered scenes of solids (Johnson et al., CVPR 2017, arXiv:1612.06890).

https://cs.stanford.edu/people/jcjohns/clevr; CC BY 4.0.

As TFDS's clevr 3.1.0 reads it: the key is the file name, such as `CLEVR_train_000000.png`; images sorted by name go
with the scenes of the split's JSON file in its order. VTAB's labels (task_adaptation, data/clevr.py), with d the
smallest depth of an object as a float32 and the bounds 0, 8, 8.5, 9, 9.5, 10, 100:

    clevr_count   objects - 3
    clevr_dist    the last bound that is below d        a depth of 8.0 is still 0
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vpeft.data.tables import VTAB
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "CLEVR_v1.0.zip",
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        sha256="5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1",
        size=19_021_600_724,
    ),
)
HOW = ""
# Its test split has no scenes, so VTAB tests on validation.
_SPLITS = {"train": "train", "validation": "val"}
_BOUNDS = np.array([0, 8, 8.5, 9, 9.5, 10, 100], np.float32)


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (70,000) and validation (15,000).

    Args:
        folder: Where the archive lies.
        task: `clevr_count` or `clevr_dist`.

    Raises:
        ValueError: The archive is missing or damaged, or images and scenes do not go together.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    label = {"clevr_count": _count, "clevr_dist": _distance}[task]

    def split(name: str) -> list[Example]:
        images = sorted(archive.below(f"CLEVR_v1.0/images/{name}"))
        scenes = _scenes(archive, f"CLEVR_v1.0/scenes/CLEVR_{name}_scenes.json")
        if len(images) != len(scenes):
            raise ValueError(f"{archive.path} has {len(images)} images of {name} and {len(scenes)} scenes.")
        wanted = []
        for image, scene in zip(images, scenes, strict=True):
            file = PurePosixPath(image).name
            if scene["image_filename"] != file:
                raise ValueError(f"{archive.path}: '{image}' stands where the scene of {scene['image_filename']} is.")
            wanted.append((image, file, label(scene["objects"])))
        return examples(archive, wanted, len(VTAB[task].classes))

    return {split_name: split(name) for split_name, name in _SPLITS.items()}


def _scenes(archive: Archive, name: str) -> list[dict[str, Any]]:
    try:
        scenes = json.loads(archive.read(name), object_hook=_slim)["scenes"]
        for scene in scenes:
            _ = scene["image_filename"], [float(item["pixel_coords"][2]) for item in scene["objects"]]
    except (ValueError, RecursionError, OverflowError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{archive.path}: '{name}' is no list of scenes with image_filename and objects with pixel_coords "
            f"({error!r}); fetch the archive again."
        ) from error
    return scenes


def _slim(part: dict[str, Any]) -> dict[str, Any]:
    # The relations between objects, which no label needs, would take three quarters of the memory.
    return {key: part[key] for key in ("scenes", "image_filename", "objects", "pixel_coords") if key in part}


def _count(objects: list[dict[str, Any]]) -> int:
    return len(objects) - 3


def _distance(objects: list[dict[str, Any]]) -> int:
    depth = np.float32(min((float(item["pixel_coords"][2]) for item in objects), default=np.inf))
    return int((depth > _BOUNDS).sum()) - 1
