"""What a multi-task run is: the schema of configs/multitask/*.yaml (`kind: multitask`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpeft.nearest import did_you_mean
from vpeft.schema import OptimConfig, TrainConfig

TASKS = ("semseg", "human_parts", "saliency", "normals")


@dataclass
class MultiTaskDataConfig:
    """Images and the labels of several tasks.

    Args:
        task: Name of the data under `root`; rendered scenes are always `shapes`.
        root: Folder PASCAL_MT as data_prep/pascal_context.py leaves it; None renders synthetic scenes.
        tasks: Which of semseg, human_parts, saliency and normals.
        augment: Random changes of training images.
        train_scenes: Rendered scenes to train on.
        val_scenes: Rendered scenes to evaluate on.
        batch_size: Images a step and a device.
        eval_batch_size: Images a step in evaluation.
        workers: Loader processes.
        drop_last: Leave out the last, smaller batch of an epoch.
    """

    task: str = "pascal_context"
    root: Path | None = None
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    augment: Literal["none", "flip"] = "flip"
    train_scenes: int = 256
    val_scenes: int = 64
    batch_size: int = 32
    eval_batch_size: int = 32
    workers: int = 0
    drop_last: bool = True


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
class TaskWeights:
    """What the losses of the tasks are multiplied by; the public codes' own (scale-lab/MTLoRA @ 333a375, from ASTMT).

    Args:
        semseg: Of the cross-entropy of classes.
        human_parts: Of the cross-entropy of parts.
        saliency: Of the balanced binary cross-entropy.
        normals: Of the mean absolute difference.
    """

    semseg: float = 1.0
    human_parts: float = 2.0
    saliency: float = 5.0
    normals: float = 10.0


@dataclass
class SingleTaskConfig:
    """What a model of each task alone reached.

    Args:
        semseg: mIoU in percent.
        human_parts: mIoU in percent.
        saliency: mIoU in percent.
        normals: Mean angle in degrees.
    """

    semseg: float | None = None
    human_parts: float | None = None
    saliency: float | None = None
    normals: float | None = None


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
        weights: Of the tasks' losses.
        single_task: What the relative improvement is measured against; it is left out while a task of `data.tasks` has
            none.
        data: Images and labels.
        optim: Optimiser and schedule.
        train: How the run goes.
        seed: Of initialisation, order, scenes and dropout.
        output: Folder that receives one folder a run, and results.jsonl.
        name: The run's folder; None is made from data, method, backbone and seed.
        protocol: One of configs/protocols.
    """

    kind: Literal["multitask"] = "multitask"
    method: dict[str, Any] | list[dict[str, Any]] = field(default_factory=lambda: {"name": "mtlora"})
    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "auto"
    image_size: int | list[int] | None = None
    normalization: Literal["auto", "imagenet", "inception", "none"] = "auto"
    drop_path: float = 0.0
    head: MultiTaskHeadConfig = field(default_factory=MultiTaskHeadConfig)
    weights: TaskWeights = field(default_factory=TaskWeights)
    single_task: SingleTaskConfig = field(default_factory=SingleTaskConfig)
    data: MultiTaskDataConfig = field(default_factory=MultiTaskDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: Path = Path("runs")
    name: str | None = None
    protocol: str | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of this kind that are out of range or at odds: a dotted key, and the sentence that says so."""
        tasks = self.data.tasks
        if not tasks:
            yield "data.tasks", f"data.tasks is empty; name some of {', '.join(TASKS)}"
        for task in dict.fromkeys(tasks):
            if task not in TASKS:
                yield "data.tasks", f"data.tasks names '{task}'; {did_you_mean(task, TASKS)}"
            if tasks.count(task) > 1:
                yield "data.tasks", f"data.tasks names {task} twice"
        for key, group in (("weights", self.weights), ("single_task", self.single_task)):
            for task, value in asdict(group).items():
                if value is not None and not value > 0:
                    yield f"{key}.{task}", f"{key}.{task} must be above 0, not {value}"
        if self.data.root is None:
            least = self.data.batch_size * self.data.drop_last or 1
            for key, scenes, needed in (
                ("train_scenes", self.data.train_scenes, least),
                ("val_scenes", self.data.val_scenes, 1),
            ):
                if scenes < needed:
                    yield f"data.{key}", f"data.{key} is {scenes}; at least {needed} are needed for a batch"
        if self.train.label_smoothing:
            yield "train.label_smoothing", "train.label_smoothing belongs to kind classification"
        if self.train.strategy == "fsdp":
            yield "train.strategy", "train.strategy fsdp belongs to kind classification; use ddp"
        if self.train.selection == "best_val":
            yield (
                "train.selection",
                "train.selection best_val chooses on val, which is what kind multitask is tested on; use last",
            )
