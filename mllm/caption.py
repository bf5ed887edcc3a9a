"""Captions of image files.

Shapes: I images of a batch, H W pixels.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mllm.assistant import Assistant
from mllm.collate import collate, instructions
from mllm.data.captions import captioned
from mllm.data.images import read
from mllm.generate import Decoding, answers
from vpeft.data.images import UnreadableImage
from vpeft.fetch import write_atomic


class Caption(NamedTuple):
    """What was said about an image."""

    path: Path
    text: str


def caption(
    assistant: Assistant, paths: Sequence[Path], decoding: Decoding, prompt: str = "", batch_size: int = 8
) -> Iterator[Caption | UnreadableImage]:
    """Caption files in their order; one that cannot be read gives its error in its place.

    Args:
        assistant: Model and preparation.
        paths: Image files.
        decoding: How words are chosen.
        prompt: What each image is shown with, as in training; many captions are trained without any.
        batch_size: Images at a time.
    """
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        images = [_load(assistant, path) for path in some]
        shown = [(path, image) for path, image in zip(some, images, strict=True) if isinstance(image, Tensor)]
        said = iter(_say(assistant, shown, decoding, prompt) if shown else [])
        for path, image in zip(some, images, strict=True):
            yield image if isinstance(image, UnreadableImage) else Caption(path, next(said))


def show(found: Iterable[Caption | UnreadableImage]) -> tuple[list[Caption], int]:
    """Print each caption on a line, and each unreadable file on stderr, as they come.

    Returns:
        The captions, and how many files could not be read.
    """
    captions, unreadable = [], 0
    for one in found:
        if isinstance(one, UnreadableImage):
            print(f"error: {one}", file=sys.stderr)
            unreadable += 1
        else:
            print(f"{one.path}: {one.text}", flush=True)
            captions.append(one)
    return captions, unreadable


def write_csv(path: Path | str, captions: Sequence[Caption]) -> None:
    """One line an image: image, caption; a file that captions can be trained on.

    Raises:
        OSError: The file could not be written.
    """
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["image", "caption"])
    lines.writerows(captions)
    write_atomic(Path(path), text.getvalue().encode())


def _load(assistant: Assistant, path: Path) -> Tensor | UnreadableImage:
    try:
        return assistant.look(read(path))
    except UnreadableImage as error:
        return error


def _say(assistant: Assistant, shown: list[tuple[Path, Tensor]], decoding: Decoding, prompt: str) -> list[str]:
    writing = assistant.writing
    rows = [[writing.prompt(captioned(str(path), (path,), "", prompt, ""))] for path, _ in shown]
    batch = collate(rows, torch.stack([image for _, image in shown]), writing.tokens_per_image, "left")
    if writing.instruction_tokenizer is not None:
        batch |= instructions(rows, writing.instruction_tokenizer)
    batch = {name: tensor.to(assistant.device) for name, tensor in batch.items()}
    return answers(assistant.model, batch, decoding, assistant.ends)
