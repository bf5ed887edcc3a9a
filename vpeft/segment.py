"""Pictures of what a SAN finds of free-text classes in an image.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vpeft.data.masks import voc_colour
from vpeft.data.openvocab import resized
from vpeft.data.openvocab_benchmarks import class_names
from vpeft.dense.openvocab_schema import MaskLossConfig, PolyOptimConfig
from vpeft.dense.san_text import check_classes
from vpeft.dense.san_weights import MODELS, create, create_trained, find, read_manifest
from vpeft.nearest import did_you_mean
from vpeft.tasks.openvocab import OpenVocab

Others = Literal["coco", "none"]
OTHER = "other"
_GREY = (128, 128, 128)
_ROW = 24  # pixels a line of the legend


def parse_classes(text: str) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        ValueError: there is none, one is empty, or one comes twice.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    check_classes(names)
    return names


class Segmenter:
    """A SAN with trained weights.

    Args:
        model: A key of `vpeft.dense.san_weights.MODELS`; None is that of `weights`, or san_vit_b16.
        weights: san.safetensors of a run, or official checkpoint; None is the official one in the cache.
        clip: File of CLIP's weights, both towers; None takes those in `weights`, those that the run had, those in the
            cache, or the hub's.
        device: Torch's name of a device.

    Raises:
        ValueError: no such model, or no weights; nothing is segmented with random ones.
        FileNotFoundError: a named file is missing.
        RuntimeError: CLIP's weights could not be had.
    """

    def __init__(
        self, model: str | None = None, weights: str | None = None, clip: str | None = None, device: str = "cpu"
    ) -> None:
        if model is not None and model not in MODELS:
            raise ValueError(f"--model: there is no SAN '{model}'; {did_you_mean(model, MODELS)}")
        file = find(model or "san_vit_b16", weights)
        manifest = read_manifest(file)
        self.sides: tuple[int, int] = (640, 2560)
        if manifest is None:
            config = replace(MODELS[model or "san_vit_b16"], weights=str(file), pretrained=clip or "auto")
            san = create(config)
        elif model is not None and (trained := manifest["model"]["clip"]) != MODELS[model].clip:
            raise ValueError(f"--model {model}: {file} was trained on {trained}; leave out --model, the file says it.")
        else:
            san = create_trained(file, manifest, clip)
            self.sides = (manifest["data"]["short_side"], manifest["data"]["long_side"])
        self.task = OpenVocab(san, None, {}, MaskLossConfig(), PolyOptimConfig()).to(device).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image, classes: Sequence[str], others: Others = "coco") -> np.ndarray:
        """The class of every pixel, [H, W]; K where it is none of them.

        Args:
            image: RGB.
            classes: Names, used as prompts as they are.
            others: `coco` lets COCO-Stuff's classes compete, as the official program does, and what they win is K;
                `none` shares out all pixels among `classes`.
        """
        check_classes(classes)
        asked = {name.strip().lower() for name in classes}
        competing = [name for name in class_names("coco_stuff171") if others == "coco" and name not in asked]
        pixels = resized(image, *self.sides)[None].to(self.task.device)
        found = self.task(pixels, [*classes, *competing], (image.height, image.width))
        return found[0].clamp(max=len(classes)).cpu().numpy()


def shares(labels: np.ndarray, classes: Sequence[str]) -> list[tuple[str, float]]:
    """Name and share of the pixels of each class and of the rest, in the order of `classes`."""
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1) / labels.size
    return list(zip([*classes, OTHER], counts.tolist(), strict=True))


def overlay(image: Image.Image, labels: np.ndarray, classes: Sequence[str], opacity: float = 0.6) -> Image.Image:
    """The image, tinted by class, above a legend of the classes that are in it."""
    colours = [voc_colour(number + 1) for number in range(len(classes))] + [_GREY]
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    tint = np.array(colours, np.float32)[labels]
    alpha = np.where(labels == len(classes), opacity / 3, opacity)[..., None]
    tinted = Image.fromarray((pixels * (1 - alpha) + tint * alpha).round().astype(np.uint8))
    there = [(name, colours[number]) for number, (name, share) in enumerate(shares(labels, classes)) if share]
    return _with_legend(tinted, there)


def _with_legend(image: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    font = ImageFont.load_default(size=14)
    places, x, y = [], 4, image.height + 4
    for name, _ in entries:
        width = int(font.getlength(name)) + 30
        if x > 4 and x + width > image.width:
            x, y = 4, y + _ROW
        places.append((x, y))
        x += width
    width = max(
        image.width, *(x + int(font.getlength(name)) + 30 for (x, _), (name, _) in zip(places, entries, strict=True))
    )
    canvas = Image.new("RGB", (width, y + _ROW), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for (x, y), (name, colour) in zip(places, entries, strict=True):
        draw.rectangle((x, y, x + 16, y + 16), fill=colour, outline="black")
        draw.text((x + 22, y), name, fill="black", font=font)
    return canvas


def output_path(given: str | None, image: Path) -> Path:
    """Where the picture goes: what was given, or beside the working directory under the image's name.

    Raises:
        ValueError: it is no PNG, or its folder does not exist.
    """
    path = Path(given).expanduser() if given else Path(f"{image.stem}_segmented.png")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--output {path}: the picture is a PNG; give a name that ends in .png.")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}; make it first.")
    return path
