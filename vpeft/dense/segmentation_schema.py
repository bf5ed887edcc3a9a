"""What a run of `kind: segmentation` is: the schema of the files under configs/ade20k/."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpeft.dense.schema import SegmentationDataConfig
from vpeft.schema import OptimConfig, TrainConfig


@dataclass
class InferenceConfig:
    """From a network of one size to predictions of whole images.

    Args:
        mode: `slide` averages overlapping windows of the network's size; `whole` takes an image in one pass, padded.
        stride: Pixels between two windows; None is two thirds of the window, as 341 for 512.
        scales: Sizes that are averaged, as factors of the image's; one is single-scale testing.
        flip: Average with the mirror image too.
    """

    mode: Literal["slide", "whole"] = "slide"
    stride: int | None = None
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False


@dataclass
class SegmentationConfig:
    """One run of semantic segmentation.

    Args:
        kind: Of run.
        method: `{name: lorand}`, or a list of such, attached in order.
        neck: What runs the backbone and gives maps, `{name: vit_adapter, regime: extractor}`.
        head: From maps to logits, `{name: uper}`.
        auxiliary: A second head, for training alone, a list of such, or null.
        auxiliary_weight: Of the loss of each; 0.4 in mmsegmentation.
        avg_non_ignore: Divide the cross-entropy by the pixels that are not ignored; mmsegmentation's default divides by
            all of them.
        backbone: As for classification; its images are the crops.
        pretrained: `auto`; `none` for random weights; or the path of a weights file.
        image_size: Side of the square crop, or [height, width]; None is the backbone's own.
        normalization: `auto` is the backbone's own; the others are the three historical choices.
        drop_path: Stochastic depth of the backbone's branches, growing linearly with depth.
        data: Images and masks.
        inference: From crops to whole images.
        optim: Optimiser and schedule.
        train: How the run goes.
        seed: Of initialisation, order and dropout.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from task, method, backbone and seed.
        protocol: One of configs/protocols.
    """

    kind: Literal["segmentation"] = "segmentation"
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "linear"})
    neck: dict[str, Any] = field(default_factory=lambda: {"name": "last"})
    head: dict[str, Any] = field(default_factory=lambda: {"name": "linear_bn"})
    auxiliary: dict[str, Any] | list[dict[str, Any]] | None = None
    auxiliary_weight: float = 0.4
    avg_non_ignore: bool = False
    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "auto"
    image_size: int | list[int] | None = None
    normalization: Literal["auto", "imagenet", "inception", "none"] = "auto"
    drop_path: float = 0.0
    data: SegmentationDataConfig = field(default_factory=SegmentationDataConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None
    protocol: str | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        if self.auxiliary_weight < 0:
            yield "auxiliary_weight", f"auxiliary_weight must be at least 0, not {self.auxiliary_weight}"
        if not self.inference.scales or min(self.inference.scales) <= 0:
            yield "inference.scales", f"inference.scales must be numbers above 0, not {self.inference.scales}"
        if self.inference.stride is not None and self.inference.stride < 1:
            yield "inference.stride", f"inference.stride must be at least 1, not {self.inference.stride}"
        if self.train.label_smoothing:
            yield "train.label_smoothing", "train.label_smoothing belongs to kind classification"
        if self.train.strategy == "fsdp":
            yield "train.strategy", "train.strategy fsdp belongs to kind classification; use ddp"
        if self.train.selection == "best_val" and self.data.split != "train":
            yield (
                "train.selection",
                f"train.selection best_val chooses on val, which data.split {self.data.split} trains on; give "
                + "data.split train or train.selection last",
            )
