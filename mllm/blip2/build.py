"""The job of `kind: blip2`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from mllm import connectors
from mllm.blip2.adapter import build_stage, save
from mllm.blip2.bert import begin_with_bert
from mllm.blip2.data import PairData
from mllm.blip2.model import Blip2
from mllm.blip2.schema import Blip2Config
from mllm.blip2.task import Pretraining
from mllm.blip2.text import Words, load_tokenizer
from mllm.build import build_tower, tower_of, vision_mistakes
from mllm.features import Features
from mllm.language import tokenizer_hash
from mllm.vision import vision_shape
from vpeft.data.images import Interpolation

# Sets whose texts answer a question.
_QUESTIONS = ("easyvqa", "rendered", "rendered_pairs")


def mistakes(config: Blip2Config) -> Iterator[tuple[str, str]]:
    """Settings that there are not or that do not go together: the setting, and the sentence that says so."""
    try:
        connectors.check(config.connector)
    except ValueError as error:
        yield "connector", str(error)
        return
    entry = connectors.resolve(config.connector)
    for option, without in (("instructed", False), ("vocab", None)):
        if entry[option] != without:
            yield (
                "connector",
                f"connector.{option} is of a Q-Former before a language model; in kind blip2 it reads captions, and as "
                "many words as tokenizer has; leave it out",
            )
    if config.data.max_length > entry["positions"]:
        yield (
            "data.max_length",
            f"data.max_length is {config.data.max_length}, and the Q-Former reads texts of up to {entry['positions']} "
            "tokens; lower it, or raise connector.positions",
        )
    for name in ("pack", "group_by_length"):
        if getattr(config.data, name):
            yield (
                f"data.{name}",
                f"data.{name} is of sequences with images in them, and kind blip2 has none; leave it out",
            )
    if config.data.task in _QUESTIONS:
        yield (
            "data.task",
            f"data.task {config.data.task} has answers to questions, and kind blip2 learns from captions; use "
            "easyvqa_captions, or files of captions",
        )
    if config.train.strategy == "fsdp":
        yield "train.strategy", "train.strategy fsdp shares out a language model, and kind blip2 has none; use ddp"
    yield from vision_mistakes(config)


def resolve(config: Blip2Config) -> dict[str, Any]:
    """The connector with every option written out."""
    return {"connector": connectors.resolve(config.connector)}


class Blip2Job:
    """A run of `kind: blip2`, built and not started.

    Args:
        config: Of the run.
    """

    def __init__(self, config: Blip2Config) -> None:
        self.config = config
        self.words = Words(load_tokenizer(config.tokenizer), config.data.max_length)
        vision = build_tower(config.vision, config.method, config.seed)
        self.connector = connectors.resolve(config.connector) | {"vocab": self.words.vocab}
        torch.manual_seed(config.seed)
        self.model = Blip2(vision, build_stage(self.connector, asdict(config.loss), vision_shape(vision)))
        if config.start is not None:
            print(f"start: {config.start}: took {begin_with_bert(config.start, self.model.connector)}", flush=True)
        backbone = vision.backbone
        self.data = PairData(
            config.data,
            self.words,
            backbone.image_size,
            cast(Interpolation, backbone.interpolation),
            tuple(backbone.normalization[0]),
            config.seed,
            config.cache_features,
        )
        features = Features(vision, self.model.mean, self.model.std) if config.cache_features else None
        self.task = Pretraining(self.model, self.data, config.optim, config.candidates, features)

    def save(self, path: Path, row: Mapping[str, Any]) -> None:
        """Write the adapter, with what it takes to use it."""
        config = self.config
        said = {
            "kind": config.kind,
            "seed": config.seed,
            "method": row["method"],
            "task": config.data.task,
            "parameters": row["parameters"],
            "result": {"id": row["id"], "test": row["test"]},
            "preparation": self.data.preparation,
        }
        save(path, self.model, said | self.said())

    def said(self) -> dict[str, Any]:
        """What a row says of models and weights."""
        config = self.config
        return {
            "backbone": tower_of(self.model.vision, config.vision),
            "connector": self.connector,
            "tokenizer": {"name": config.tokenizer, "sha256": tokenizer_hash(self.words.tokenizer)},
            "start": config.start,
            "loss": asdict(config.loss),
            "candidates": config.candidates,
            "cache_features": config.cache_features,
            "images_lost": self.data.skipped,
        }


def assemble(config: Blip2Config) -> Blip2Job:
    """Model and data of a configuration."""
    return Blip2Job(config)
