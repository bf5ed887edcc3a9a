"""The job of `kind: classification`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch

from vpeft import backbones, heads, methods
from vpeft.backbones import Backbone
from vpeft.config import Config
from vpeft.data import ClassificationData
from vpeft.data.images import Interpolation
from vpeft.data.locate import locate
from vpeft.job import Job
from vpeft.normalization import normalization
from vpeft.tasks.classification import Classification
from vpeft.tasks.feature_cache import FeatureCache
from vpeft.tasks.pictures import TestPictures
from vpeft.tasks.reporting import ClassifiedPictures
from vpeft.tuned import Tuned


def find(config: Config) -> str:
    """What the data of a configuration is called; only its lists are read."""
    return locate(config.data).provenance["task"]


def assemble(config: Config, backbone: Backbone | None = None) -> Job:
    """Backbone, data and model of a configuration; the backbone is built where it is not given."""
    backbone = backbone or build_backbone(config)
    interpolation = cast(Interpolation, backbone.interpolation)
    data = ClassificationData(config.data, backbone.image_size, interpolation, config.seed, config.train.test)
    task = build_task(config, backbone, data.classes)
    if config.cache_features:
        task.cache = FeatureCache(task.tuned, {part: len(data.splits[part].files) for part in ("train", "val")})
    return Job(task, data, TestPictures(ClassifiedPictures(), 32))


def build_task(config: Config, backbone: Backbone, classes: Sequence[str]) -> Classification:
    """The LightningModule of a configuration."""
    mean, std = normalization(config.normalization, backbone)
    return Classification(_tuned(config, backbone, classes), classes, config.optim, config.train, mean, std)


def build_tuned(config: Config, classes: Sequence[str]) -> Tuned:
    """The model of a configuration, untrained; its initialisation follows the seed."""
    return _tuned(config, build_backbone(config), classes)


def manifest(config: Config, task: Classification, data: ClassificationData) -> dict[str, Any]:
    """Nothing beside what every adapter says."""
    return {}


def _tuned(config: Config, backbone: Backbone, classes: Sequence[str]) -> Tuned:
    torch.manual_seed(config.seed)  # whatever loading the backbone drew
    backbone.normalization = normalization(config.normalization, backbone)
    attached = methods.build(config.method, backbone)
    head = heads.build(dataclasses.asdict(config.head), backbone, methods.feature_dim(backbone, attached), classes)
    return Tuned(backbone, attached, head, drop_path=config.drop_path)


def build_backbone(config: Config) -> Backbone:
    """The backbone of a configuration, with nothing attached."""
    return backbones.create(config.backbone, config.pretrained, config.image_size, config.seed)
