"""The job of `kind: multitask`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from vpeft import backbones, methods
from vpeft.backbones import Backbone
from vpeft.data.multitask import MultiTaskData, name_of
from vpeft.data.pascal_context import identifiers
from vpeft.dense.multitask import multitask
from vpeft.dense.multitask_pictures import MultiTaskPictures
from vpeft.dense.multitask_schema import MultiTaskConfig
from vpeft.dense.unfit import unfit
from vpeft.job import Data, Job
from vpeft.normalization import normalization
from vpeft.tasks.multitask import MultiTaskModule
from vpeft.tasks.pictures import TestPictures
from vpeft.tuned import Tuned


def mistakes(config: MultiTaskConfig) -> Iterator[tuple[str, str]]:
    """Methods that cannot work: the setting, and the sentence that says so."""
    specs = method_spec(config)
    for sentence in unfit(specs):
        yield "method", sentence
    names = [spec["name"] for spec in specs]
    if len(names) > 1 and "mtlora" in names:
        yield "method", "mtlora goes alone in a multi-task run: it carries the tasks beside the trunk"


def method_spec(config: MultiTaskConfig) -> list[dict[str, Any]]:
    """The methods, each that knows tasks with those of the data.

    Raises:
        ValueError: a method or an option that there is not.
    """
    specs = config.method if isinstance(config.method, list) else [config.method]
    methods.check(specs)
    return [
        {**spec, "tasks": list(config.data.tasks)} if "tasks" in methods.options(spec["name"]) else spec
        for spec in specs
    ]


def find(config: MultiTaskConfig) -> str:
    """What the data of a configuration is called; only its lists are read."""
    if config.data.root is not None:
        for part in ("train", "val"):
            identifiers(config.data.root.expanduser(), part)
    return name_of(config.data)


def assemble(config: MultiTaskConfig) -> Job:
    """Backbone, data and model of a configuration."""
    backbone = backbones.create(config.backbone, config.pretrained, config.image_size, config.seed)
    data = MultiTaskData(config.data, backbone.image_size, config.seed)
    mean, std = normalization(config.normalization, backbone)
    backbone.normalization = (mean, std)
    torch.manual_seed(config.seed)  # whatever loading the backbone drew
    said = vars(config) | {"method": method_spec(config), "head": asdict(config.head), "outputs": data.outputs}
    alone = {task: value for task, value in asdict(config.single_task).items() if value is not None}
    task = MultiTaskModule(
        tuned_of(said, backbone),
        data.outputs,
        data.classes,
        config.optim,
        config.train,
        mean,
        std,
        asdict(config.weights),
        alone,
    )
    return Job(task, data, TestPictures(MultiTaskPictures(), 8))


def tuned_of(manifest: Mapping[str, Any], backbone: Backbone) -> Tuned:
    """The model that the manifest of an adapter describes, untrained."""
    backbone.skip_norm()
    attached = methods.build(manifest["method"], backbone)
    head = manifest["head"]
    return multitask(backbone, attached, manifest["outputs"], head["kind"], head["reading"], manifest["drop_path"])


def manifest(config: MultiTaskConfig, task: MultiTaskModule, data: Data) -> dict[str, Any]:
    """What an adapter says beside what every adapter does: outputs by task."""
    return {"outputs": task.tasks}
