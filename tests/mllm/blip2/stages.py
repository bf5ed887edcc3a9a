"""The golden first stage: LAVIS's weights and inputs in `mllm.blip2.model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mllm import qformer_names
from mllm.blip2.model import FirstStage, Pairs
from mllm.blip2.retrieval import Read, Seen
from mllm.qformer import QFormer
from tests.golden import golden
from tests.mllm import parity

SIZES: dict[str, Any] = {"dim": 24, "depth": 4, "heads": 3, "hidden": 40}
HEADS = {
    "norm": "ln_vision",
    "image_proj": "vision_proj",
    "text_proj": "text_proj",
    "itm_head": "itm_head",
    "word_head": "Qformer.cls.predictions",
    "word_head.dense": "Qformer.cls.predictions.transform.dense",
    "word_head.norm": "Qformer.cls.predictions.transform.LayerNorm",
}


def lavis(name: str) -> str:
    """LAVIS's name of a parameter of `FirstStage`."""
    if name == "temperature":
        return "temp"
    if name.startswith("qformer."):
        return qformer_names.lavis(name.removeprefix("qformer."))
    stem, _, kind = name.rpartition(".")
    return f"{HEADS[stem]}.{kind}"


def official(**options: Any) -> tuple[FirstStage, dict[str, Tensor]]:
    """The stage with the file's weights, and the file."""
    g = golden("mllm_blip2_losses")
    qformer = QFormer(4, 20, **SIZES, vocab=31, positions=12)
    stage = FirstStage(qformer, 20, embed=14, **options).eval()
    parity.load(stage, g, lavis)
    return stage, g


def pairs(g: Mapping[str, Tensor], image: Tensor | None = None) -> Pairs:
    """The file's batch; `image` numbers its images, which are different ones otherwise."""
    ids = g["input/input_ids"]
    number = torch.arange(4)
    return Pairs(g["input/image_tokens"], ids, (ids != 0).long(), number if image is None else image, number)


def drawn(g: Mapping[str, Tensor], kind: str = "") -> Iterator[Tensor]:
    """The file's negatives, in the order in which they are asked for: images, then texts."""
    yield g[f"input/negative_image{kind}"]
    yield g[f"input/negative_text{kind}"]


def kept(seen: Seen, features: Tensor, count: int) -> Read:
    """Features [I N C] of the images of `seen`, read so many at a time."""

    def read(numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for block in numbers.split(count):
            yield block, features[torch.searchsorted(seen.image, block)]

    return read
