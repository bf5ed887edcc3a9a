"""What a run of BLIP-2's first stage is: the schema of configs/mllm/blip2_stage1.yaml (`kind: blip2`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mllm.data_schema import DataConfig
from mllm.schema import OptimConfig, TrainConfig, VisionConfig, shared_conflicts


@dataclass
class Blip2LossConfig:
    """BLIP-2's three losses; they are added as they are.

    Args:
        terms: Which losses; all three are published. itc is one of them.
        embed: Width of the space that images and texts are compared in.
        temperature: Where the learned temperature of itc begins.
        smoothing: Label smoothing of itc and itg.
        gather_grad: The gradient of itc reaches the images and texts that are compared with too, not only those that
            are compared; LAVIS's does not.
    """

    terms: list[str] = field(default_factory=lambda: ["itc", "itm", "itg"])
    embed: int = 256
    temperature: float = 0.07
    smoothing: float = 0.1
    gather_grad: bool = False


@dataclass
class Blip2Config:
    """One run of BLIP-2's first stage: a Q-Former that learns from image-text pairs, without a language model.

    Args:
        kind: Says which schema a file has.
        vision: The vision tower.
        method: What is trained in it; `{name: linear}` trains nothing there.
        connector: Options of the Q-Former; its name is qformer.
        tokenizer: `hf:<hub id or folder>`, or an embedded language model whose tokenizer is taken.
        start: `hf:` and a folder or hub id, or a path, of a BERT with the Q-Former's sizes, whose weights it begins
            with, as BLIP-2 with BERT-base; None starts at random.
        loss: The three losses.
        candidates: For how many captions of each image, and images of each caption, itm decides the order in
            evaluation; 128 in BLIP-2.
        cache_features: Run the frozen vision tower once for every image and keep its features in memory.
        data: Images and captions; `max_length` is that of a caption, 32 in BLIP-2.
        optim: Optimiser and schedule.
        train: How the run goes.
        seed: Of initialisation, order, negatives and dropout.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from task and seed.
    """

    kind: Literal["blip2"] = "blip2"
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(prefix=True))
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "linear"})
    connector: dict[str, Any] = field(default_factory=lambda: {"name": "qformer"})
    tokenizer: str = "hf:google-bert/bert-base-uncased"
    start: str | None = None
    loss: Blip2LossConfig = field(default_factory=Blip2LossConfig)
    candidates: int = 128
    cache_features: bool = False
    data: DataConfig = field(default_factory=lambda: DataConfig(task="easyvqa_captions", max_length=32))
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None

    @property
    def label(self) -> str:
        """What its folder is called, but for the seed."""
        return f"{self.data.task}-blip2-{self.vision.backbone}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        yield from shared_conflicts(self)
        terms, names = self.loss.terms, ("itc", "itm", "itg")
        if self.connector.get("name") != "qformer":
            yield "connector", f"connector must be a qformer in kind blip2, not '{self.connector.get('name')}'"
        if unknown := [term for term in terms if term not in names]:
            yield "loss.terms", f"loss.terms has '{unknown[0]}'; there are {', '.join(names)}"
        elif "itc" not in terms:
            yield (
                "loss.terms",
                "loss.terms must have itc: itm draws its negatives by it, and itg alone trains not all of the Q-Former",
            )
        if not self.loss.temperature > 0:
            yield "loss.temperature", f"loss.temperature must be above 0, not {self.loss.temperature}"
        if not 0 <= self.loss.smoothing < 1:
            yield "loss.smoothing", f"loss.smoothing must be from 0 to below 1, not {self.loss.smoothing}"
        for key, value in {"loss.embed": self.loss.embed, "candidates": self.candidates}.items():
            if value < 1:
                yield key, f"{key} must be at least 1, not {value}"
        if self.data.batch_size < 2:
            yield "data.batch_size", "data.batch_size must be at least 2: a pair is told from the others of its batch"
