"""What an open-vocabulary run is: the schema of configs/openvocab/*.yaml (`kind: openvocab`). Defaults are SAN's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class SANConfig:
    """A CLIP and its side network.

    Args:
        clip: `MODEL/TAG` in open_clip's words.
        pretrained: Of CLIP: `auto`; `none` for random weights; or the path of a file that holds both towers.
        weights: Trained weights of SAN to begin with, or to evaluate with `train.steps` 0: san.safetensors of a run or
            an official checkpoint; None begins anew.
        taps: Blocks of CLIP after which its maps are fused into the side network; recognition begins after the last.
        clip_scale: Size of CLIP's image as a fraction of the side network's.
        templates: Sentences with {} for a class; an empty list stands for ViLD's 14.
        image_size: Side that the side network's positions are for.
        dim: Width of the side network.
        depth: Its blocks.
        heads: Of its attention.
        queries: Masks that are proposed.
        embed: Width of mask and bias embeddings.
        hidden: Hidden width of the MLPs that make them.
        supervised: Side blocks whose proposals are trained; the last is used.
    """

    clip: str = "ViT-B-16/openai"
    pretrained: str = "auto"
    weights: str | None = None
    taps: list[int] = field(default_factory=lambda: [0, 3, 6, 9])
    clip_scale: float = 0.5
    templates: list[str] = field(default_factory=list)
    image_size: int = 640
    dim: int = 240
    depth: int = 8
    heads: int = 6
    queries: int = 100
    embed: int = 256
    hidden: int = 256
    supervised: list[int] = field(default_factory=lambda: [7, 8])


@dataclass
class OpenVocabDataConfig:
    """Images and masks.

    Args:
        root: Folder of the published data sets, each in its own folder as the official code has them.
        train: What is trained on: one of the published data sets, or a folder with images/, masks/ and classes.txt.
        tests: What is evaluated, each with its own classes as the vocabulary.
        absent: A class that the ground truth lacks but that was predicted: `ignore` it in the mean as detectron2 does,
            whose numbers SAN publishes, or IoU `zero` (mmsegmentation).
        check_counts: Refuse a published data set that has another number of images than was published.
        crop: Side of a training image.
        sizes: Shorter sides to which training images are resized, one at random; an empty list stands for 320, 384
            ... 960.
        short_side: Shorter side of images that are evaluated.
        long_side: Bound of the longer side, of both.
        flip: Share of training images that are mirrored.
        distort: Change brightness, contrast, saturation and hue, each of half of the images.
        batch_size: Images a step and a device.
        workers: Loader processes.
    """

    root: Path = Path("datasets")
    train: str = "coco_stuff171"
    tests: list[str] = field(default_factory=lambda: ["voc20", "pc59", "ade150", "pc459", "ade847"])
    absent: Literal["ignore", "zero"] = "ignore"
    check_counts: bool = True
    crop: int = 640
    sizes: list[int] = field(default_factory=list)
    short_side: int = 640
    long_side: int = 2560
    flip: float = 0.5
    distort: bool = True
    batch_size: int = 32
    workers: int = 4


@dataclass
class MaskLossConfig:
    """Matching and losses.

    Args:
        no_object: Weight of "no object" in the cross-entropy.
        class_weight: Of the cross-entropy and, in the matching, of the class.
        mask_weight: The same of binary cross-entropy.
        dice_weight: The same of dice.
        points: Points a mask is compared at.
        oversample: Candidates a point.
        importance: Share of the points where the mask is least sure.
    """

    no_object: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75


@dataclass
class PolyOptimConfig:
    """AdamW under lr (1 - step / steps)^power, without a warm-up.

    Args:
        lr: At the first step.
        weight_decay: Of all but positions, queries and the side ViT's norms.
        power: Of the schedule.
        clip: Largest norm of the whole gradient.
    """

    lr: float = 1e-4
    weight_decay: float = 1e-4
    power: float = 0.9
    clip: float = 0.01


@dataclass
class StepsConfig:
    """How the run goes.

    Args:
        steps: Optimiser steps; 0 trains nothing and evaluates `model.weights`, without any training images.
        val_every: Steps between evaluations.
        precision: Of the forward and backward pass, in Lightning's words; the official runs are 16-mixed.
        accelerator: Lightning's accelerator.
        devices: How many of them; -1 is all.
        strategy: Lightning's strategy.
        resume: Go on from the last checkpoint in the run's folder if there is one.
    """

    steps: int = 60_000
    val_every: int = 5_000
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    resume: bool = False


@dataclass
class OpenVocabConfig:
    """One open-vocabulary experiment.

    Args:
        kind: Says which schema a file has.
        model: CLIP and side network.
        data: Images and masks.
        loss: Matching and losses.
        optim: Optimiser and schedule.
        train: How the run goes.
        seed: Of initialisation, order, points and changes of images.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from task, CLIP and seed.
    """

    kind: Literal["openvocab"] = "openvocab"
    model: SANConfig = field(default_factory=SANConfig)
    data: OpenVocabDataConfig = field(default_factory=OpenVocabDataConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    optim: PolyOptimConfig = field(default_factory=PolyOptimConfig)
    train: StepsConfig = field(default_factory=StepsConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None

    @property
    def task(self) -> str:
        """What it is trained on, or evaluated on where nothing is trained; of a folder its name."""
        names = [self.data.train] if self.train.steps else self.data.tests
        return "+".join(Path(name).expanduser().name for name in names)

    @property
    def label(self) -> str:
        """What its folder is called, but for the seed."""
        return f"{self.task}-san-{self.model.clip}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        model, data, loss, train = self.model, self.data, self.loss, self.train
        at_least_one = {
            "model.queries": model.queries,
            "data.crop": data.crop,
            "data.short_side": data.short_side,
            "data.sizes": min(data.sizes, default=1),
            "loss.points": loss.points,
        }
        for key, value in at_least_one.items():
            if value < 1:
                yield key, f"{key} must be at least 1, not {value}"
        if model.clip_scale <= 0:
            yield "model.clip_scale", f"model.clip_scale must be above 0, not {model.clip_scale}"
        for key, value in {"data.flip": data.flip, "loss.importance": loss.importance}.items():
            if not 0 <= value <= 1:
                yield key, f"{key} must be from 0 to 1, not {value}"
        if loss.oversample < 1:
            yield "loss.oversample", f"loss.oversample must be at least 1, not {loss.oversample}"
        if data.crop % 32:
            yield "data.crop", f"data.crop must be a multiple of 32, not {data.crop}; take {data.crop // 32 * 32 + 32}"
        if data.long_side < data.short_side:
            yield "data.long_side", f"data.long_side {data.long_side} is below data.short_side {data.short_side}"
        if not data.tests:
            yield "data.tests", "data.tests is empty; name at least one data set to evaluate"
        if train.steps < 0:
            yield "train.steps", f"train.steps must be at least 0, not {train.steps}"
        if train.steps == 0 and model.weights is None:
            yield (
                "train.steps",
                "train.steps 0 evaluates trained weights, and there are none; give --model.weights FILE",
            )
