"""From a multi-task configuration to what is trained, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch

from vpeft import backbones, methods
from vpeft.backbones import Backbone
from vpeft.data.multitask import MultiTaskData
from vpeft.dense.multitask import TASKS, MultiTask
from vpeft.dense.multitask_schema import MultiTaskConfig
from vpeft.normalization import normalization
from vpeft.schema import ConfigError
from vpeft.tasks.multitask import MultiTaskModule


def build(config: MultiTaskConfig) -> tuple[MultiTaskModule, MultiTaskData]:
    """The LightningModule and the data of a configuration; nothing has been written yet.

    Raises:
        ConfigError: a setting does not fit; nothing has been loaded.
        ValueError: the data, the backbone or a method does not fit.
    """
    check(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone = backbones.create(config.backbone, config.pretrained, config.image_size, config.seed)
    data = MultiTaskData(config.data, backbone.image_size, config.seed)
    mean, std = normalization(config.normalization, backbone)
    backbone.normalization = (mean, std)
    model = build_model(config, backbone, data.outputs)
    return MultiTaskModule(model, config.optim, config.train, mean, std, config.weights, config.single_task), data


def build_model(config: MultiTaskConfig, backbone: Backbone, outputs: Mapping[str, int]) -> MultiTask:
    """Backbone, methods and heads; their initialisation follows the seed."""
    torch.manual_seed(config.seed)  # whatever loading the backbone drew
    backbone.skip_norm()
    attached = methods.build(method_spec(config), backbone)
    return MultiTask(backbone, attached, outputs, config.head.kind, config.head.reading, config.drop_path)


def method_spec(config: MultiTaskConfig) -> list[dict[str, Any]]:
    """The methods, each that knows tasks with those of the data."""
    specs: Sequence[dict[str, Any]] = config.method if isinstance(config.method, list) else [config.method]
    methods.check(specs)
    return [
        {**spec, "tasks": list(config.data.tasks)} if "tasks" in methods.options(spec["name"]) else spec
        for spec in specs
    ]


def check(config: MultiTaskConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        ConfigError: the first mistake.
    """
    tasks = config.data.tasks
    if not tasks:
        raise ConfigError(f"data.tasks is empty; name some of {', '.join(TASKS)}.")
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"data.tasks names '{task}'; there are {', '.join(TASKS)}.")
        if tasks.count(task) > 1:
            raise ConfigError(f"data.tasks names {task} twice.")
    for key in ("weights", "single_task"):
        for task, value in getattr(config, key).items():
            if task not in tasks:
                raise ConfigError(f"{key} names '{task}', which is not among data.tasks {', '.join(tasks)}.")
            if not value > 0:
                raise ConfigError(f"{key}.{task} is {value}; it must be above 0.")
    try:
        specs = method_spec(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if len(specs) > 1 and any(spec["name"] == "mtlora" for spec in specs):
        raise ConfigError("method mtlora goes alone in a multi-task run: it carries the tasks beside the trunk.")
    if config.train.strategy == "fsdp":
        raise ConfigError("train.strategy fsdp is not for kind multitask; use ddp.")
    smallest = {"train_scenes": config.data.batch_size, "val_scenes": 1}
    for key, least in smallest.items():
        if config.data.root is None and getattr(config.data, key) < least:
            raise ConfigError(f"data.{key} is {getattr(config.data, key)}; at least {least} are needed for a batch.")
