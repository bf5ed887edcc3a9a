"""Answers to the questions of a part, generated and scored; with controls that do not show the image.

Shapes: I images of a batch, H W pixels.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from mllm.card import card
from mllm.data.batches import Batches
from mllm.data.module import MultimodalData
from mllm.data.shelf import Shelf
from mllm.features import Features
from mllm.generate import Decoding, answers
from mllm.sample import MARKER, Sample
from mllm.schema import EvaluationConfig
from mllm.scoring import SCORERS, Scored
from mllm.vlm import VLM
from vpeft.data.loader import EpochSampler, make_loader
from vpeft.data.ranking import ranked
from vpeft.fetch import write_atomic

if TYPE_CHECKING:
    import lightning.pytorch as L

# Sets whose samples' ids end in the kind of the question.
WITH_KINDS = ("easyvqa", "rendered", "rendered_pairs")


class Answer(NamedTuple):
    """One sample: what was asked, what was generated, and the answers that are right."""

    id: str
    question: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Answers:
    """The answers to the samples of a part, and what they are worth.

    Args:
        rows: In the order of the samples.
        scored: By the rule of the settings.
        controls: The same questions about other images, by the name of the control; its ids and what they are worth.
        kinds: Whether the ids end in the kind of the question.
        lost: Samples that were left out because an image of theirs was lost after the evaluation had begun.
        card: How all that came about (`mllm.card`).
    """

    rows: list[Answer]
    scored: Scored
    controls: dict[str, tuple[list[str], Scored]]
    kinds: bool
    lost: int
    card: dict[str, Any]

    @property
    def score(self) -> float:
        """What matters, 0 to 1; of CIDEr 0 to 10."""
        return self.scored.score

    def values(self) -> dict[str, Any]:
        """Plain numbers: `score`, `samples`, `lost`, what the rule gives besides, `shuffled` and `blank` where there
        are controls, each of the three by kind (`score/shape`); and `card`."""
        found: dict[str, Any] = {"samples": len(self.rows), "lost": self.lost} | self.scored.values
        ids = [row.id for row in self.rows]
        for name, (of, scored) in {"score": (ids, self.scored), **self.controls}.items():
            found[name] = scored.score
            if self.kinds:
                found |= {f"{name}/{kind}": mean for kind, mean in _by_kind(of, scored.each).items()}
        return found | {"card": self.card}

    def write(self, path: Path) -> None:
        """Every sample as a line of JSON: id, question, references, answer, score.

        Raises:
            OSError: The file could not be written.
        """
        lines = (row._asdict() | {"score": each} for row, each in zip(self.rows, self.scored.each, strict=True))
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def answer_all(
    model: VLM,
    data: MultimodalData,
    part: str,
    settings: EvaluationConfig,
    features: Features | None = None,
    trainer: L.Trainer | None = None,
) -> Answers:
    """Generate and score the answers of a part.

    Under DDP every process answers its share and has the whole afterwards. Of a sharded model (FSDP) every process
    answers everything: a step of it is a step of all. A sample whose image any process lost is scored nowhere.

    Args:
        model: Answers.
        data: Whose samples; it is set up.
        part: Of them.
        settings: How; `score` is not `none`.
        features: Of the images, where they are kept.
        trainer: Whose processes and precision; None is this process alone.

    Raises:
        ValueError: The part has no samples or all have lost their images, right answers are of another kind than the
            rule compares with, or there is nothing to shuffle.
    """
    chosen = choose(data, part, settings.samples)
    reader = _Reader(model, data, settings, features, trainer)
    there, said = reader(chosen)
    lost = len(chosen) - len(there)
    rows = [
        Answer(sample.id, _question(sample), references(sample), answer)
        for sample, answer in zip(there, said, strict=True)
    ]
    measure = SCORERS[settings.score]
    scored = measure(said, [row.references for row in rows])
    controls = {}
    if settings.controls:
        shown = Shelf(sample for sample in there if sample.images)
        for name, asked, blank in (("shuffled", shuffled(shown, data.config.task), False), ("blank", shown, True)):
            left, heard = reader(asked, blank)
            controls[name] = [one.id for one in left], measure(heard, [references(one) for one in left])
    kinds = data.config.task in WITH_KINDS
    return Answers(rows, scored, controls, kinds, lost, card(model, data, part, settings, there, lost))


def choose(data: MultimodalData, part: str, count: int | None) -> Shelf:
    """The samples that are asked: all, or so many, the first by the hashes of their ids; in their order.

    Samples that ask the same about the same image and have the same `answers` are one.

    Raises:
        ValueError: There are none.
    """
    samples, positions, seen = data.samples(part), [], set()
    for i, sample in enumerate(samples):
        asked = (sample.images, sample.turns[:-1], sample.answers)
        if not sample.answers or asked not in seen:
            seen.add(asked if sample.answers else None)
            positions.append(i)
    if not positions:
        raise ValueError(
            f"{data.config.task} has no samples in '{part}', so there is nothing to answer; choose another part."
        )
    if count is not None and count < len(positions):
        names = [samples[i].id for i in positions]
        order = ranked(range(len(positions)), f"{data.config.task}-{part}", names)
        positions = [positions[i] for i in sorted(order[:count])]
    return samples.take(positions)


def serve(
    data: MultimodalData, samples: Shelf, prompts: bool, rank: int = 0, world: int = 1
) -> DataLoader[dict[str, Tensor]]:
    """Batches of samples in their order, as `MultimodalData.loader` makes those of a part; `index` counts in them."""
    batches = Batches(samples, data.pictures, data.writing, None, prompts, data.by_index)
    sampler = EpochSampler(len(samples), data.config.eval_batch_size, shuffle=False, rank=rank, world=world)
    return make_loader(batches, sampler, data.config.workers)


def references(sample: Sample) -> tuple[str, ...]:
    """The right answers of a sample."""
    return sample.answers or (sample.turns[-1].text,)


def shuffled(samples: Shelf, key: str) -> Shelf:
    """Each sample with the images of another, which are as many and not the same.

    Raises:
        ValueError: A sample has no such other.
    """
    order = ranked(range(len(samples)), f"{key}-shuffled", [sample.id for sample in samples])
    images = [sample.images for sample in samples]
    other = {}
    for place, i in enumerate(order):
        rest = (images[j] for j in order[place + 1 :] + order[:place])
        found = next((one for one in rest if len(one) == len(images[i]) and not set(one) & set(images[i])), None)
        if found is None:
            raise ValueError(
                f"evaluation.controls shows each question with the images of another sample, and none has other "
                f"{len(images[i])} than sample '{samples[i].id}'. Evaluate more samples, or leave controls out."
            )
        other[i] = found
    return Shelf(replace(sample, images=other[i]) for i, sample in enumerate(samples))


class _Reader:
    """Generates the answers to samples, in their order, and leaves those out whose images are lost."""

    def __init__(
        self,
        model: VLM,
        data: MultimodalData,
        settings: EvaluationConfig,
        features: Features | None,
        trainer: L.Trainer | None,
    ) -> None:
        self.model, self.data, self.features = model, data, features
        self.decoding = Decoding(max_new_tokens=settings.max_new_tokens, beams=settings.beams)
        self.ends = [data.writing.template.stop(data.writing.tokenizer)]
        self.rank, self.world = 0, 1
        self.processes = 1 if trainer is None else trainer.world_size
        if trainer is not None and not isinstance(model, FSDPModule):
            self.rank, self.world = trainer.global_rank, trainer.world_size
        self.first = trainer is None or trainer.is_global_zero
        self.precision = contextlib.nullcontext if trainer is None else trainer.precision_plugin.forward_context

    def __call__(self, samples: Shelf, blank: bool = False) -> tuple[Shelf, list[str]]:
        loader = serve(self.data, samples, True, self.rank, self.world)
        said: dict[int, str] = {}
        lost: set[int] = set()
        quiet = not (self.first and sys.stdout.isatty())
        for batch in track(loader, description="answers", transient=True, disable=quiet):
            with torch.no_grad(), self.precision():
                texts = answers(self.model, self._ready(batch, blank), self.decoding, self.ends)
            said |= dict(zip(batch["index"].tolist(), texts, strict=True))
            if not blank:
                lost |= set(batch["index"][batch["lost"]].tolist())
        if self.processes > 1:
            said, lost = _united(said, lost, self.processes)
        left = [index for index in range(len(samples)) if index not in lost]
        if lost and not left:
            raise ValueError(
                f"All images of the {len(samples)} samples that are evaluated were lost during the run, so there is "
                "nothing to score; restore them."
            )
        return (samples.take(left) if lost else samples), [said[index] for index in left]

    def _ready(self, batch: dict[str, Tensor], blank: bool) -> dict[str, Tensor]:
        device = self.model.mean.device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        count = len(batch["image_row"])
        if blank:
            return batch | {"features": self._blank(device).expand(count, -1, -1)}
        if self.features is not None:
            return batch | {"features": self.features(batch["image_index"])}
        return batch

    def _blank(self, device: torch.device) -> Tensor:
        look = self.data.look
        return self.model.see(
            torch.tensor(look.fill, dtype=torch.uint8, device=device).view(1, 3, 1, 1).expand(1, 3, *look.size)
        )


def _united(said: dict[int, str], lost: set[int], processes: int) -> tuple[dict[int, str], set[int]]:
    """The answers of all processes, and what any of them lost."""
    parts: list[Any] = [None] * processes
    torch.distributed.all_gather_object(parts, (said, lost))
    texts = {index: text for part, _ in parts for index, text in part.items()}
    return texts, {index for _, some in parts for index in some}


def _by_kind(ids: Sequence[str], each: Sequence[float]) -> dict[str, float]:
    kinds = [id.rpartition("/")[2] for id in ids]
    return {kind: fmean(x for x, k in zip(each, kinds, strict=True) if k == kind) for kind in dict.fromkeys(kinds)}


def _question(sample: Sample) -> str:
    asked = [turn.text for turn in sample.turns if turn.role == "user"]
    return asked[-1].replace(MARKER, "").strip()
