"""What a run is: the schema of every YAML file under configs/, and the values it allows.

Options of a method are the keyword arguments of its constructor: the signature is their schema.
`vpeft.config` reads files and command lines into a `Config`; `vpeft.ranges` says which numbers it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpeft.ranges import mistakes, values

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "HeadConfig",
    "OptimConfig",
    "TrainConfig",
    "mistakes",
    "values",
]


class ConfigError(ValueError):
    """A mistake in a configuration; the message is one sentence that names where, what and what to do."""


@dataclass
class DataConfig:
    """Images and labels.

    Args:
        task: Name of an embedded task, of a VTAB-1k task, or any name for a folder of one's own.
        root: Directory of the data; None is the embedded suite in the user cache.
        format: Layout under `root`; `auto` looks.
        split: What is trained on. `train800` evaluates on val200 while it trains.
        resize: `squash` ignores the aspect ratio (VTAB); `crop` keeps it and cuts the centre.
        interpolation: `auto` is the backbone's own.
        augment: Random changes of training images.
        batch_size: Images a step and a device.
        eval_batch_size: Images a step in evaluation.
        workers: Loader processes.
        drop_last: Leave out the last, smaller batch of an epoch.
        on_error: What an unreadable image does.
    """

    task: str = "digits"
    root: Path | None = None
    format: Literal["auto", "embedded", "vtab", "folder"] = "auto"
    split: Literal["train800", "train800val200"] = "train800val200"
    resize: Literal["squash", "crop"] = "squash"
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    augment: Literal["none", "flip", "crop_flip"] = "none"
    batch_size: int = 64
    eval_batch_size: int = 128
    workers: int = 0
    drop_last: bool = False
    on_error: Literal["stop", "skip"] = "stop"


@dataclass
class HeadConfig:
    """From features to logits.

    Args:
        kind: `linear` is trained. The others are not: `label_mapping` lets the classes that the backbone was pretrained
            on answer for the new ones (ILM-VP), `text` is CLIP's zero-shot classifier, `active_features` takes some
            features as logits (DAM-VP).
        init: Of linear: `zero`; `trunc_normal` with std 0.01 (AdaptFormer); `vpt`: kaiming fan-out, bias -log(99).
        batch_norm: A BatchNorm1d without affine parameters before the linear map (AdaptFormer).
        source: What label_mapping chooses from: the pretrained `classifier`, or every class name in every template.
        sources: Pretrained classes for each new one, in label_mapping.
        every: Epochs between two label mappings; 0 maps once, before the first.
        templates: Sentences with {} for the class, of `text`; `openai` stands for the 80 that CLIP used on ImageNet.
    """

    kind: Literal["linear", "label_mapping", "text", "active_features"] = "linear"
    init: Literal["zero", "trunc_normal", "vpt"] = "trunc_normal"
    batch_norm: bool = False
    source: Literal["classifier", "text"] = "classifier"
    sources: int = 1
    every: int = 1
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])


@dataclass
class OptimConfig:
    """Optimiser and schedule: linear warm-up, then a fall, per step.

    Args:
        name: Optimiser.
        lr: Peak learning rate of the method.
        weight_decay: Decay of the method's matrices.
        decay_vectors: Decay one-dimensional parameters (biases, scales, norms) too.
        momentum: Of SGD.
        head_lr: Peak learning rate of the head; None is `lr`.
        head_weight_decay: Decay of the head; None is `weight_decay`.
        warmup_epochs: Length of the warm-up, counted in epochs; the schedule moves every step.
        schedule: After the warm-up: half a cosine, or `poly`, (1 - t) ** power.
        power: Of poly; 1.0 is a straight line, as in segmentation with transformers.
        min_lr: Where the schedule ends, as a fraction of the peak.
        layer_decay: Of the rate of the backbone's own parameters where they are trained: this factor for every block
            below the last, once more for the embedding (BEiT, ViT-Adapter); None gives all of them `lr`.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    decay_vectors: bool = False
    momentum: float = 0.9
    head_lr: float | None = None
    head_weight_decay: float | None = None
    warmup_epochs: float = 10.0
    schedule: Literal["cosine", "poly"] = "cosine"
    power: float = 1.0
    min_lr: float = 0.0
    layer_decay: float | None = None


@dataclass
class TrainConfig:
    """How the run goes.

    Args:
        epochs: Passes over the training images.
        precision: Of the forward and backward pass, in Lightning's words.
        frozen: How frozen weights are stored. `bf16` casts once those of linear maps and convolutions, which
            bf16-mixed casts at every step; no result changes by a bit (`vpeft.frozen`).
        accumulate: Batches summed into one optimiser step.
        clip: Largest gradient norm; None does not clip.
        ema: Decay of an average of the trained parameters that is evaluated and saved; None keeps none.
        label_smoothing: Of the cross-entropy.
        selection: `last` epoch, or the best on val200 (needs `data.split: train800`).
        val_every: Epochs between evaluations on val200.
        test: Test once at the end and save an adapter. Without it the test split is not read: for a choice of
            settings on val200 (tools/suite.py).
        accelerator: Lightning's accelerator.
        devices: How many of them; -1 is all.
        nodes: Machines.
        strategy: Lightning's strategy.
        compile: Use torch.compile.
        sync_batchnorm: Statistics of a BatchNorm over all processes, on GPUs, as the published segmentation recipes.
        resume: Go on from the last checkpoint in the run's folder if there is one.
    """

    epochs: int = 100
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    frozen: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    label_smoothing: float = 0.0
    selection: Literal["last", "best_val"] = "last"
    val_every: int = 1
    test: bool = True
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    sync_batchnorm: bool = False
    resume: bool = False


@dataclass
class Config:
    """One run of image classification.

    Args:
        kind: Of run; a file without it is of this one.
        method: `{name: vpt, prompts: 10}`, or a list of such, attached in order.
        backbone: `vit_base_patch16_224.orig_in21k` (timm), `open_clip:ViT-B-16/openai`,
            `hf:google/vit-base-patch16-224-in21k`, or an embedded one (`vit_small_patch14_saliency`).
        pretrained: `auto`; `none` for random weights; or the path of a weights file.
        image_size: Side of the square input, or [height, width]; None is the backbone's own.
        normalization: `auto` is the backbone's own; the others are the three historical choices.
        drop_path: Stochastic depth of the backbone's branches, growing linearly with depth.
        head: From features to logits.
        data: Images and labels.
        optim: Optimiser and schedule.
        train: How the run goes.
        cache_features: Run the backbone once for every image and keep what the method needs of it in memory; for
            methods under which that does not change (linear, vqt).
        seed: Of initialisation, order and dropout.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from task, method, backbone and seed.
        protocol: One of configs/protocols. In a file its settings lie under those of the file, and with
            `--protocol` over them.
    """

    kind: Literal["classification"] = "classification"
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "linear"})
    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "auto"
    image_size: int | list[int] | None = None
    normalization: Literal["auto", "imagenet", "inception", "none"] = "auto"
    drop_path: float = 0.0
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cache_features: bool = False
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None
    protocol: str | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        head = self.head
        if not self.train.test and self.data.split != "train800":
            yield (
                "train.test",
                f"train.test false measures on val200 alone, which data.split {self.data.split} trains on; give "
                + "data.split train800",
            )
        if head.batch_norm and head.kind != "linear":
            yield "head.batch_norm", f"head.batch_norm belongs to head.kind linear, and head.kind is {head.kind}"
        if not head.templates or not all("{}" in text or text == "openai" for text in head.templates):
            yield "head.templates", "head.templates must be sentences with {} for the name of the class, or 'openai'"
        if self.cache_features:
            yield from _uncacheable(self)
        if self.train.selection == "best_val" and self.data.split != "train800":
            yield (
                "train.selection",
                f"train.selection best_val chooses on val200, which data.split {self.data.split} trains on; "
                + "give data.split train800 or train.selection last",
            )


def _uncacheable(config: Config) -> Iterator[tuple[str, str]]:
    if config.data.augment != "none":
        yield (
            "cache_features",
            f"cache_features keeps one view of every image, and data.augment {config.data.augment} makes new ones",
        )
    if config.drop_path:
        yield (
            "cache_features",
            f"cache_features keeps what the whole backbone makes of an image, and drop_path {config.drop_path:g} "
            + "leaves out other parts of it at every step",
        )
    if config.train.devices != 1 or config.train.nodes != 1 or config.train.strategy == "fsdp":
        yield (
            "cache_features",
            "cache_features keeps images in the memory of one process; give train.devices 1, train.nodes 1 and another "
            + "train.strategy than fsdp, or leave it out",
        )
