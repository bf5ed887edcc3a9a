"""DMLab frames (Zhai et al., 2019, arXiv:1910.04867, appendix; environment: Beattie et al., 2016, arXiv:1612.03801).

https://github.com/google-research/task_adaptation, Apache-2.0. TFRecord files in a tar.gz; a record holds a JPEG of
360 x 480, its file name and the label: {close, far, very far} x {positive, negative reward}.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from vpeft.vtab1k.archives import Archive, Stored, decode
from vpeft.vtab1k.records import parse_example, read_record, records
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "dmlab.tar.gz",
        "https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz",
        sha256="638b18fa69a5d61bbc310cd0b87ac603a39f41de0fdb07b6e77de274a24480a4",
        size=3_017_022_789,
    ),
)
HOW = ""


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of 'train', 'validation' and 'test'; the key is the record's file name.

    Raises:
        ValueError: The archive is missing, damaged or another one.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    found: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for name in archive.names:
        split = PurePosixPath(name).name.removeprefix("dmlab-").split(".tfrecord")[0]
        if split in found:
            found[split] += _read(archive.member(name))
    return found


def _read(shard: Stored) -> list[Example]:
    data = shard.read()
    examples = []
    for offset, size in records(io.BytesIO(data), shard.name):
        try:
            fields = parse_example(data[offset : offset + size])
            key, label = fields["filename"][0].decode(), fields["label"][0]
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"{shard.name} in {shard.archive}, byte {offset:,}: no frame of DMLab ({error})."
            ) from error
        examples.append(Example(key, label, partial(_image, shard, offset, size)))
    return examples


def _image(shard: Stored, offset: int, size: int) -> Image.Image:
    return decode(parse_example(read_record(shard, offset, size))["image"][0], f"byte {offset:,} of {shard.name}")
