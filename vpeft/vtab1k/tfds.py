"""A task's images from a folder that TensorFlow Datasets prepared; its records are read without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vpeft.vtab1k.archives import Stored, decode
from vpeft.vtab1k.cuts import CUTS, parts
from vpeft.vtab1k.readers import dsprites
from vpeft.vtab1k.records import parse_example, read_record, records
from vpeft.vtab1k.selection import Chosen, Loaded, Selection

Fields = dict[str, list[Any]]

# Where TFDS's data sets store an image's name; the others store none.
_NAMES = ("id", "file_name", "filename", "image/file_name", "name")


def _plain(name: str) -> Callable[[Fields], int]:
    return lambda fields: int(fields[name][0])


def _last_below(name: str, bounds: tuple[float, ...], vehicles: bool = False) -> Callable[[Fields], int]:
    # VTAB's distances: the last bound below the smallest depth, the third number of every object.
    def label(fields: Fields) -> int:
        depths = np.array(fields.get(name, []), np.float32)[2::3]
        if vehicles:  # Car, Van and Truck; 1000 stands for none
            depths = np.append(depths[np.array(fields.get("objects/type", []), int) < 3], np.float32(1000))
        return int((depths.min() > np.array(bounds, np.float32)).sum()) - 1

    return label


_LABEL = _plain("label")


@dataclass(frozen=True)
class Prepared:
    """Where TFDS puts a data set, and VTAB's label of a record.

    Args:
        path: Name, and configuration where there are several, as folders.
        major: VTAB's major version; later minor ones hold the same data.
        label: From the fields of a record.
        gain: What pixel values are multiplied by.
        later: A later major version with the same keys and labels, which current releases of TFDS make instead.
    """

    path: str
    major: int
    label: Callable[[Fields], int] = _LABEL
    gain: int = 1
    later: int | None = None

    @property
    def version(self) -> str:
        """What TFDS is asked for."""
        return f"{self.path}:{self.later or self.major}.*.*"

    @property
    def accepted(self) -> str:
        """The versions in words."""
        return f"{self.major}.*.*" + (f" or {self.later}.*.*" if self.later else "")


def _dsprites(attribute: str, task: str) -> Prepared:
    return Prepared("dsprites", 2, lambda fields: dsprites.label(fields[attribute][0], task), gain=255)


PREPARED: dict[str, Prepared] = {
    "caltech101": Prepared("caltech101", 3),
    "cifar100": Prepared("cifar100", 3),
    "dtd": Prepared("dtd", 3),
    "oxford_flowers102": Prepared("oxford_flowers102", 2),
    # 4.0.0 stores twelve images again as JPEG; it is taken where there is no 3.*.*.
    "oxford_iiit_pet": Prepared("oxford_iiit_pet", 3, later=4),
    "sun397": Prepared("sun397/tfds", 4),
    "svhn": Prepared("svhn_cropped", 3),
    "patch_camelyon": Prepared("patch_camelyon", 2),
    "eurosat": Prepared("eurosat/rgb", 2),
    "resisc45": Prepared("resisc45", 3),
    "diabetic_retinopathy": Prepared("diabetic_retinopathy_detection/btgraham-300", 3),
    "clevr_count": Prepared("clevr", 3, lambda fields: len(fields["objects/size"]) - 3),
    "clevr_dist": Prepared("clevr", 3, _last_below("objects/pixel_coords", (0, 8, 8.5, 9, 9.5, 10, 100))),
    "dmlab": Prepared("dmlab", 2),
    "kitti": Prepared("kitti", 3, _last_below("objects/location", (-100, 8, 20, 999), vehicles=True)),
    "dsprites_loc": _dsprites("label_x_position", "dsprites_loc"),
    "dsprites_ori": _dsprites("label_orientation", "dsprites_ori"),
    "smallnorb_azi": Prepared("smallnorb", 2, _plain("label_azimuth")),
    "smallnorb_ele": Prepared("smallnorb", 2, _plain("label_elevation")),
}


def select(task: str, folder: Path) -> Selection:
    """The images of a task.

    Args:
        task: The task.
        folder: TFDS's data folder. Where it lacks the data set, TFDS prepares it there if it is installed.

    Raises:
        ValueError: The data set is not prepared and cannot be, is damaged, incomplete or of another version.
    """
    place = find(task, folder) or prepare(task, folder)
    shards = {split: _shards(place, split) for split in CUTS[task].sizes}
    sizes = {split: sum(size for _, size in listed) for split, listed in shards.items()}
    images: list[Chosen] = []
    indices: dict[Path, list[tuple[int, int]]] = {}
    for part, (split, positions) in parts(task, sizes).items():
        for position, (shard, offset, size) in _located(shards[split], positions, indices):
            load = partial(_load, task, shard, offset, size)
            images.append(Chosen(part, position - positions.start, split, position, load))
    version = f"{PREPARED[task].path}/{place.name}"
    return Selection(task, images, {"source": "tfds", "lossy": False, "tfds": version})


def find(task: str, folder: Path) -> Path | None:
    """The folder of the newest prepared version that VTAB accepts, of VTAB's major one if there is any."""
    data = PREPARED[task]
    for major in (data.major, data.later):
        versions = [
            (tuple(map(int, child.name.split("."))), child)
            for child in (folder / data.path).glob(f"{major}.*.*")
            if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and child.is_dir()
        ]
        if versions:
            return max(versions)[1]
    return None


def prepare(task: str, folder: Path) -> Path:
    """Let TFDS download and prepare a data set.

    Raises:
        ValueError: TFDS is not installed, or says no; tells what to run.
    """
    data = PREPARED[task]
    builder = f'tensorflow_datasets.builder("{data.version}", data_dir="{folder}")'
    how = (
        f"In an environment with tensorflow and tensorflow-datasets run: python -c 'import tensorflow_datasets; "
        f"{builder}.download_and_prepare()'; it need not be this environment. Or use --source originals."
    )
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError(
            f"{task}: {folder / data.path} has no version {data.accepted}, and TFDS is not installed. {how}"
        )
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]

        tfds.builder(data.version, data_dir=str(folder)).download_and_prepare()
    except Exception as error:  # whatever TFDS, TensorFlow or the network raise
        raise ValueError(f"{task}: TFDS could not prepare {data.path} in {folder}: {error}. {how}") from error
    if place := find(task, folder):
        return place
    raise ValueError(f"{task}: TFDS prepared {data.path}, but {folder} has no version {data.accepted} of it. {how}")


def _shards(place: Path, split: str) -> list[tuple[Stored, int]]:
    """Files of a split in order, with the number of records that dataset_info.json tells of each."""
    info = place / "dataset_info.json"
    try:
        told = {one["name"]: one for one in json.loads(info.read_text())["splits"]}
        lengths = [int(length) for length in told[split]["shardLengths"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{info} does not tell the files of the split '{split}' ({error!r}); TFDS did not finish there. Delete "
            f"{place} and prepare it again."
        ) from error
    suffix = f"-{split}.tfrecord-{{:05d}}-of-{len(lengths):05d}"
    shards = []
    for number, length in enumerate(lengths):
        found = sorted(place.glob(f"*{suffix.format(number)}"))
        if len(found) != 1:
            others = sorted({file.name.split(".")[-1].split("-")[0] for file in place.glob(f"*-{split}.*")})
            raise ValueError(
                f"{place} has {len(found)} files *{suffix.format(number)} and not one"
                + (f"; its files are of the kind {', '.join(others)}, and tfrecord is read." if others else ".")
            )
        shards.append((Stored(found[0], "file", found[0].name, 0, found[0].stat().st_size), length))
    return shards


def _located(
    shards: list[tuple[Stored, int]], positions: range, indices: dict[Path, list[tuple[int, int]]]
) -> Iterator[tuple[int, tuple[Stored, int, int]]]:
    start = 0
    for shard, length in shards:
        first, last = max(0, positions.start - start), min(length, positions.stop - start)
        if first < last:
            if shard.archive not in indices:
                indices[shard.archive] = _index(shard.archive, length)
            for i in range(first, last):
                yield start + i, (shard, *indices[shard.archive][i])
        start += length


def _index(path: Path, length: int) -> list[tuple[int, int]]:
    with path.open("rb") as stream:
        found = list(records(stream, str(path)))
    if len(found) != length:
        raise ValueError(
            f"{path} has {len(found)} records and not {length}, as dataset_info.json says; delete {path.parent} and "
            "prepare it again."
        )
    return found


def _load(task: str, shard: Stored, offset: int, size: int) -> Loaded:
    fields = parse_example(read_record(shard, offset, size))
    where = f"the record at byte {offset:,} of {shard.name}"
    try:
        label = PREPARED[task].label(fields)
        image = decode(fields["image"][0], where)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{where} lacks {error}; it is another version of the data set than {PREPARED[task].accepted}. Prepare "
            "that."
        ) from error
    gain = PREPARED[task].gain
    name = next((fields[field][0].decode() for field in _NAMES if fields.get(field)), None)
    return (np.asarray(image) * np.uint8(gain) if gain != 1 else image), label, name
