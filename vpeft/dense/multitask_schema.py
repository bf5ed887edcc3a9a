"""What a multi-task run is: the schema of configs/multitask/*.yaml (`kind: multitask`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpeft.schema import OptimConfig, TrainConfig


@dataclass
class MultiTaskDataConfig:
    """Images and the labels of several tasks.

    Args:
        root: Folder PASCAL_MT as data_prep/pascal_context.py leaves it; None renders synthetic scenes.
        tasks: Which of semseg, human_parts, saliency and normals.
        augment: Random changes of training images.
        train_scenes: Rendered scenes to train on.
        val_scenes: Rendered scenes to evaluate on.
        batch_size: Images a step and a device.
        eval_batch_size: Images a step in evaluation.
        workers: Loader processes.
    """

    root: Path | None = None
    tasks: list[str] = field(default_factory=lambda: ["semseg", "human_parts", "saliency", "normals"])
    augment: Literal["none", "flip"] = "flip"
    train_scenes: int = 256
    val_scenes: int = 64
    batch_size: int = 32
    eval_batch_size: int = 32
    workers: int = 0


@dataclass
class MultiTaskHeadConfig:
    """From maps to the outputs of a task.

    Args:
        kind: `all_mlp` of SegFormer (Polyhistor), or `hrnet` behind reductions (MTLoRA).
        reading: Maps as they leave the `stages`, through norms of the task's own, or after patch merging (`merged`).
    """

    kind: Literal["all_mlp", "hrnet"] = "all_mlp"
    reading: Literal["stages", "merged"] = "stages"


@dataclass
class MultiTaskConfig:
    """One multi-task experiment.

    Args:
        kind: Says which schema a file has.
        method: `{name: mtlora}` or another of vpeft.methods, or a list of such; their `tasks` are those of the data.
        backbone: As in other runs.
        pretrained: `auto`; `none` for random weights; or the path of a weights file.
        image_size: Side of the square input, or [height, width]; None is the backbone's own.
        normalization: `auto` is the backbone's own; the others are the three historical choices.
        drop_path: Stochastic depth of the backbone's branches, growing linearly with depth.
        head: From maps to outputs.
        weights: Of the tasks' losses; those that are not named have the published ones.
        single_task: What a model of each task alone reached, in percent, and in degrees for normals; the relative
            improvement is measured against these, and left out while one is missing.
        data: Images and labels.
        optim: Optimiser and schedule.
        train: How the run goes.
        seed: Of initialisation, order, scenes and dropout.
        output: Folder that receives one folder a run.
        name: The run's folder; None is made from method, backbone and seed.
    """

    kind: Literal["multitask"] = "multitask"
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "mtlora"})
    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "auto"
    image_size: int | list[int] | None = None
    normalization: Literal["auto", "imagenet", "inception", "none"] = "auto"
    drop_path: float = 0.0
    head: MultiTaskHeadConfig = field(default_factory=MultiTaskHeadConfig)
    weights: dict[str, float] = field(default_factory=dict)
    single_task: dict[str, float] = field(default_factory=dict)
    data: MultiTaskDataConfig = field(default_factory=MultiTaskDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None
