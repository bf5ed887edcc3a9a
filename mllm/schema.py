"""What a multimodal run is: the schema of configs/mllm/*.yaml (`kind: mllm`; `mllm.blip2.schema` is that of blip2).

What is trained where is said in three entries: `method` acts in the vision tower, `connector` stands between, and
`language_method` acts in the language model. Options are the keyword arguments of a constructor each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mllm.data_schema import DataConfig


@dataclass
class VisionConfig:
    """The vision tower, any backbone of vpeft.

    Args:
        backbone: As in `vpeft.schema.Config`.
        pretrained: `auto`; `none` for random weights; or the path of a weights file.
        image_size: Side of the square input, or [height, width]; None is the backbone's own.
        normalization: `auto` is the backbone's own; the others are the three historical choices.
        layer: Block whose output is read: -1 the last, -2 the one before it (LLaVA). Blocks behind it are not run.
        prefix: Hand class token and registers on too (BLIP-2); LLaVA drops them.
        norm: Apply the tower's last norm; LLaVA and BLIP-2 do not.
    """

    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "auto"
    image_size: int | list[int] | None = None
    normalization: Literal["auto", "imagenet", "inception", "none"] = "auto"
    layer: int = -2
    prefix: bool = False
    norm: bool = False


@dataclass
class LanguageConfig:
    """The language model.

    Args:
        name: `hf:<hub id or folder>`, or an embedded one (`smollm2_135m_instruct`).
        pretrained: `auto`; `none` for random weights.
        dtype: Of the frozen weights.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """

    name: str = "smollm2_135m_instruct"
    pretrained: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False


@dataclass
class OptimConfig:
    """AdamW under a linear warm-up and a fall, per step.

    Args:
        lr: Peak learning rate.
        connector_lr: Of the connector; None is `lr`.
        vision_lr: Of what is trained in the vision tower; None is `lr`.
        language_lr: Of what is trained in the language model; None is `lr`.
        gate_lr: Of the connector's gates (Flamingo, LLaMA-Adapter); None is that of the connector.
        weight_decay: Of matrices; biases, norms and gates are not decayed.
        betas: Of AdamW.
        warmup: Length of the warm-up as a share of all steps, 0.03 in LLaVA; or in steps, from 2 on.
        schedule: After the warm-up: half a cosine, or `constant` (OpenFlamingo).
        min_lr: Where the cosine ends, as a fraction of the peak.
        clip: Largest gradient norm; None does not clip.
    """

    lr: float = 1e-3
    connector_lr: float | None = None
    vision_lr: float | None = None
    language_lr: float | None = None
    gate_lr: float | None = None
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = 0.0
    clip: float | None = 1.0


@dataclass
class TrainConfig:
    """How the run goes.

    Args:
        epochs: Passes over the training samples.
        steps: Optimiser steps; None is as many as `epochs` are.
        val_every: Steps between evaluations of the loss on the validation samples; None evaluates none.
        precision: Of the forward and backward pass, in Lightning's words.
        accumulate: Batches of one optimiser step, in which every trained word counts the same (kind mllm); kind blip2
            takes the mean over its batches.
        accelerator: Lightning's accelerator.
        devices: How many of them; -1 is all.
        nodes: Machines.
        strategy: Lightning's strategy; `fsdp` shares out the language model.
        resume: Go on from the last checkpoint in the run's folder if there is one.
    """

    epochs: int = 1
    steps: int | None = None
    val_every: int | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    resume: bool = False


@dataclass
class EvaluationConfig:
    """How the answers of the test samples are generated and scored.

    Args:
        score: `none` measures the loss alone; `exact` match of the answers after normalisation; `vqa` is VQAv2's soft
            accuracy over several human answers; `yes_no` is POPE's accuracy, F1 and share of yes; `cider` is of
            captions. One of `mllm.scoring.SCORERS`.
        samples: Test samples whose answers are generated, chosen by hashes; None is all.
        max_new_tokens: Longest answer.
        beams: 1 is greedy.
        controls: Ask each question also about another sample's image and about a blank one, where a model that looks
            is right by chance only.
    """

    score: Literal["none", "exact", "vqa", "yes_no", "cider"] = "none"
    samples: int | None = None
    max_new_tokens: int = 16
    beams: int = 1
    controls: bool = False


@dataclass
class MLLMConfig:
    """One run of a vision tower, a connector and a causal language model.

    Args:
        kind: Says which schema a file has.
        vision: The vision tower.
        method: What is trained in the vision tower; `{name: linear}` trains nothing there.
        connector: Between the two, `{name: mlp, depth: 2}`.
        freeze_connector: Train other parts beside the connector of `start`.
        language: The language model.
        language_method: What is trained in it, `{name: lora, rank: 128, alpha: 256}`; `{name: frozen}` trains nothing.
        start: Adapter of an earlier stage whose connector, and whatever else fits, this run begins with.
        cache_features: Run the frozen vision tower once for every image and keep its features in memory.
        data: Images and text.
        optim: Optimiser and schedule.
        train: How the run goes.
        evaluation: How the test is scored.
        seed: Of initialisation, order and dropout.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from task, connector, language model and seed.
    """

    kind: Literal["mllm"] = "mllm"
    vision: VisionConfig = field(default_factory=VisionConfig)
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "linear"})
    connector: dict[str, Any] = field(default_factory=lambda: {"name": "mlp"})
    freeze_connector: bool = False
    language: LanguageConfig = field(default_factory=LanguageConfig)
    language_method: dict[str, Any] = field(default_factory=lambda: {"name": "frozen"})
    start: Path | None = None
    cache_features: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None

    @property
    def label(self) -> str:
        """What its folder is called, but for the seed."""
        parts = [self.connector["name"], self.language_method["name"], self.language.name.rpartition("/")[2]]
        return f"{self.data.task}-{'-'.join(parts)}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        yield from shared_conflicts(self)
        if self.freeze_connector and self.start is None:
            yield (
                "freeze_connector",
                "freeze_connector keeps the connector of an earlier stage as it is, and none is given; give start",
            )
        counts = {"max_new_tokens": self.evaluation.max_new_tokens, "beams": self.evaluation.beams}
        for name, value in {**counts, "samples": self.evaluation.samples}.items():
            if value is not None and value < 1:
                yield f"evaluation.{name}", f"evaluation.{name} must be at least 1, not {value}"
        if self.evaluation.controls and self.evaluation.score == "none":
            yield (
                "evaluation.controls",
                "evaluation.controls scores answers, and evaluation.score is none; give a score",
            )


def shared_conflicts(config: Any) -> Iterator[tuple[str, str]]:
    """Settings that runs on images and text have in common, out of range or at odds."""
    yield from config.data.conflicts()
    optim, train = config.optim, config.train
    rates = {f"optim.{name}": getattr(optim, name) for name in ("connector_lr", "vision_lr", "language_lr", "gate_lr")}
    for key, rate in rates.items():
        if rate is not None and rate < 0:
            yield key, f"{key} must be at least 0, not {rate}"
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield "optim.betas", f"optim.betas must be two numbers from 0 to below 1, not {optim.betas}"
    if not 0 <= optim.warmup < 1 and (optim.warmup < 2 or optim.warmup % 1):
        yield (
            "optim.warmup",
            f"optim.warmup is a share of all steps, from 0 to below 1, or 2 steps or more, not {optim.warmup:g}",
        )
    for key, value in {"train.steps": train.steps, "train.val_every": train.val_every}.items():
        if value is not None and value < 1:
            yield key, f"{key} must be at least 1, not {value}"
    if config.cache_features and config.data.augment != "none":
        yield (
            "cache_features",
            f"cache_features keeps what the tower makes of an image, and data.augment {config.data.augment} shows "
            + "another crop of it every time; leave one of the two out",
        )
    if config.cache_features and (train.devices != 1 or train.nodes != 1):
        yield (
            "cache_features",
            "cache_features keeps images in the memory of one process; give train.devices 1 and train.nodes 1, or "
            + "leave it out",
        )
