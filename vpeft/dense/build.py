"""The job of `kind: segmentation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from vpeft import backbones, entries, methods
from vpeft.backbones import Backbone
from vpeft.data.masks import ClassTable
from vpeft.data.segmentation import SegmentationData, locate
from vpeft.dense.decoders import Decoders
from vpeft.dense.heads import DENSE_HEADS
from vpeft.dense.necks import NECKS
from vpeft.dense.pictures import SegmentedPictures
from vpeft.dense.segmentation_schema import SegmentationConfig
from vpeft.dense.unfit import unfit
from vpeft.job import Job
from vpeft.normalization import normalization
from vpeft.tasks.pictures import TestPictures
from vpeft.tasks.segmentation import Segmentation
from vpeft.tuned import Tuned

_NECK, _HEAD = ("backbone",), ("channels", "classes")  # arguments that are given here, not in a configuration


def mistakes(config: SegmentationConfig) -> Iterator[tuple[str, str]]:
    """Necks, heads and methods that there are not or that cannot work: the setting, and the sentence that says so."""
    for sentence in unfit(config.method, config.neck):
        yield "method", sentence
    parts = [("neck", NECKS, config.neck, _NECK), ("head", DENSE_HEADS, config.head, _HEAD)]
    parts += [("auxiliary", DENSE_HEADS, entry, _HEAD) for entry in listed(config.auxiliary)]
    for key, table, entry, given in parts:
        try:
            entries.check(key, table, entry, given)
        except ValueError as error:
            yield key, str(error)


def listed(auxiliary: Any) -> list[Any]:
    """The auxiliary heads of a configuration or a manifest, which are none, one or a list."""
    if auxiliary is None:
        return []
    return auxiliary if isinstance(auxiliary, list) else [auxiliary]


def resolve(config: SegmentationConfig) -> dict[str, Any]:
    """Neck and heads with every option written out."""
    found = {"neck": entries.resolve(NECKS, config.neck, _NECK)}
    found["head"] = entries.resolve(DENSE_HEADS, config.head, _HEAD)
    resolved = [entries.resolve(DENSE_HEADS, entry, _HEAD) for entry in listed(config.auxiliary)]
    return found | {"auxiliary": resolved if isinstance(config.auxiliary, list) else next(iter(resolved), None)}


def find(config: SegmentationConfig) -> str:
    """What the data of a configuration is called; only its lists are read."""
    return locate(config.data).provenance["task"]


def assemble(config: SegmentationConfig) -> Job:
    """Backbone, data and model of a configuration."""
    backbone = _backbone(config)
    mean, std = normalization(config.normalization, backbone)
    pixel = [round(255 * value) for value in mean]  # what padding with zeros is, once images are normalised
    data = SegmentationData(config.data, backbone.image_size, config.seed, (pixel[0], pixel[1], pixel[2]))
    table = data.classes
    tuned = _tuned(config, backbone, table)
    task = Segmentation(
        tuned, table.names, config.optim, config.train, config.inference, mean, std, config.data.absent, table.ignore
    )
    return Job(task, data, TestPictures(SegmentedPictures(table), 12))


def tuned_of(manifest: Mapping[str, Any], backbone: Backbone, classes: Sequence[str]) -> Tuned:
    """The model that the manifest of an adapter describes, untrained."""
    neck = entries.build(NECKS, manifest["neck"], backbone)
    attached = methods.build(manifest["method"], backbone)
    head, *auxiliary = (
        entries.build(DENSE_HEADS, entry, neck.channels, len(classes))
        for entry in (manifest["head"], *listed(manifest["auxiliary"]))
    )
    decoders = Decoders(head, auxiliary, manifest["auxiliary_weight"], manifest["avg_non_ignore"], manifest["ignored"])
    return Tuned(backbone, attached, decoders, manifest["drop_path"], neck)


def manifest(config: SegmentationConfig, task: Segmentation, data: SegmentationData) -> dict[str, Any]:
    """What an adapter says beside what every adapter does."""
    return {
        **{name: getattr(config, name) for name in ("neck", "auxiliary", "auxiliary_weight", "avg_non_ignore")},
        "inference": asdict(config.inference),
        "absent": task.absent,
        "reduce_zero_label": config.data.reduce_zero_label,
        "ignored": task.ignored,
        "colours": [list(colour) for colour in data.classes.colours],
    }


def _tuned(config: SegmentationConfig, backbone: Backbone, table: ClassTable) -> Tuned:
    torch.manual_seed(config.seed)  # whatever loading the backbone drew
    backbone.normalization = normalization(config.normalization, backbone)
    return tuned_of(vars(config) | {"ignored": table.ignore}, backbone, table.names)


def _backbone(config: SegmentationConfig) -> Backbone:
    return backbones.create(config.backbone, config.pretrained, config.image_size, config.seed)
