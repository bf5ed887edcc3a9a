"""Drawn images of coloured shapes with questions, 32 x 32, in a language of 28 words.

`rendered` shows one shape in a quadrant: its colour, its shape and its place are asked for, each with four answers.
`rendered_pairs` shows two, left and right or top and bottom, of different colour and shape: which colour has this
shape, and which colour or shape has the left, right, top or bottom one.

Four of the sixteen pairs of colour and shape are held out of training and make up the test part `held_out`, in which
every colour and every shape is known and their combination is new. The part `all` has all pairs, for training an
encoder: one that has seen only some pairs learns the combination itself and fails for every connector behind it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw

from mllm.sample import MARKER, Held, Sample, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZE = 32
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
_WORDS = "top bottom left right what is the colour of shape where ? a at . and"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
VOCABULARY = (
    *SPECIAL,
    *COLOURS,
    *SHAPES,
    *_WORDS.split(),
)

Part = Literal["train", "val", "test", "held_out", "all"]
PARTS: tuple[Part, ...] = ("train", "val", "test", "held_out", "all")
# One of each colour and of each shape.
HELD_OUT = tuple(zip(COLOURS, SHAPES, strict=True))
_SIDES = {"left": (0, 2), "right": (1, 3), "top": (0, 1), "bottom": (2, 3)}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; `place` counts in PLACES."""

    colour: str
    shape: str
    place: int

    @property
    def words(self) -> str:
        """As a text says it."""
        return f"a {self.colour} {self.shape} at {PLACES[self.place]}"


Scene = tuple[Thing, ...]


def read(pairs: bool, images: dict[Part, int], seed: int = 0) -> dict[str, list[Sample]]:
    """Samples of each part, one for every question of every image.

    Args:
        pairs: Two shapes an image instead of one.
        images: How many of each part.
        seed: With part and number it decides an image.
    """
    return {part: list(_samples(part, count, pairs, seed)) for part, count in images.items()}


def counts(train: int) -> dict[Part, int]:
    """Images of the parts that a run uses: a tenth as many as `train`, at least 100, in each of the others."""
    rest = max(100, train // 10)
    return {"train": train, "val": rest, "test": rest, "held_out": rest}


def scene(part: Part, number: int, pairs: bool, seed: int = 0) -> Scene:
    """What an image of a part shows."""
    rng = np.random.default_rng([seed, PARTS.index(part), number, int(pairs)])
    while True:
        places = _two_places(rng) if pairs else [int(rng.integers(4))]
        colours, shapes = (rng.permutation(list(names))[: len(places)].tolist() for names in (COLOURS, SHAPES))
        things = tuple(Thing(*thing) for thing in zip(colours, shapes, places, strict=True))
        new = [(thing.colour, thing.shape) in HELD_OUT for thing in things]
        if part == "all" or (all(new) if part == "held_out" else not any(new)):
            return things


def described(things: Scene) -> str:
    """A scene in words, for training a language model without images."""
    return " and ".join(thing.words for thing in things) + " ."


def questions(things: Scene) -> Iterator[tuple[str, str, str]]:
    """Kind, question and answer of all that is asked about a scene."""
    if len(things) == 1:
        (thing,) = things
        yield "colour", "what is the colour of the shape ?", thing.colour
        yield "shape", "what is the shape ?", thing.shape
        yield "place", "where is the shape ?", PLACES[thing.place]
        return
    for thing in things:
        yield "colour_of_shape", f"what is the colour of the {thing.shape} ?", thing.colour
    for side, places in _SIDES.items():
        there = [thing for thing in things if thing.place in places]
        if len(there) == 1:
            yield "colour_of_side", f"what is the colour of the {side} shape ?", there[0].colour
            yield "shape_of_side", f"what is the {side} shape ?", there[0].shape


def draw(things: Scene, rng: np.random.Generator) -> Image.Image:
    """The image of a scene: size, place within the quadrant, shade and noise vary."""
    background = tuple(int(x) for x in rng.integers(0, 40, 3))
    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), background)
    pen = ImageDraw.Draw(image)
    for thing in things:
        radius = rng.uniform(4.5, 6.5) * 4
        x, y = (4 * (8 + 16 * along + rng.uniform(-1, 1)) for along in (thing.place % 2, thing.place // 2))
        colour = tuple(int(np.clip(c * rng.uniform(0.85, 1.1), 0, 255)) for c in COLOURS[thing.colour])
        _draw_shape(pen, thing.shape, x, y, radius, colour)
    # Drawn four times as large and shrunk, which smooths the edges.
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float64)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def tokenizer() -> PreTrainedTokenizerFast:
    """One id for each of the 28 words, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _samples(part: Part, count: int, pairs: bool, seed: int) -> Iterator[Sample]:
    name = "rendered_pairs" if pairs else "rendered"
    for number in range(count):
        things = scene(part, number, pairs, seed)
        data = io.BytesIO()
        draw(things, np.random.default_rng([seed, PARTS.index(part), number, 2])).save(data, "png")
        image = Held(f"{name}, {part}/{number}", data.getvalue())
        for kind, question, answer in questions(things):
            turns = (Turn("user", f"{MARKER}\n{question}"), Turn("assistant", answer))
            yield Sample(f"{part}/{number}/{kind}", (image,), turns, name)


def _two_places(rng: np.random.Generator) -> list[int]:
    return [int(place) for place in rng.permutation(4)[:2]]


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: tuple[int, ...]
) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        side = 0.86 * radius
        pen.rectangle((x - side, y - side, x + side, y + side), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=colour)
    else:
        arm = 0.32 * radius
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
