"""The job of `kind: mllm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mllm import adapt, connectors, language
from mllm.adapter import save_adapter
from mllm.connectors import Instructed
from mllm.data.module import MultimodalData
from mllm.features import Features
from mllm.optimisation import parameter_groups
from mllm.schema import MLLMConfig, VisionConfig
from mllm.task import Instruct
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from vpeft import backbones, methods
from vpeft.data.images import Interpolation
from vpeft.normalization import normalization
from vpeft.run_folder import RunFolder
from vpeft.tasks import checkpoint_file
from vpeft.tuned import Tuned


def mistakes(config: MLLMConfig) -> Iterator[tuple[str, str]]:
    """Entries that there are not or that do not go together: the setting, and the sentence that says so."""
    for key, check, entry in (
        ("connector", connectors.check, config.connector),
        ("language_method", adapt.check, config.language_method),
    ):
        try:
            check(entry)
        except ValueError as error:
            yield key, str(error)
            return
    yield from vision_mistakes(config)
    if config.train.strategy == "fsdp" and config.language_method["name"] == "qlora":
        yield "train.strategy", "train.strategy fsdp has no way to share out weights of 4 bits; use ddp, or lora"
    connector: Any = connectors.CONNECTORS[config.connector["name"]]
    if config.data.pack and not connector.packable:
        yield (
            "data.pack",
            f"data.pack puts several samples into a row, and the layers of {config.connector['name']} look at one "
            "sample's images; leave data.pack out",
        )


def vision_mistakes(config: Any) -> Iterator[tuple[str, str]]:
    """What of `method` and `cache_features` has no place in a tower that is trained on text."""
    specs = config.method if isinstance(config.method, list) else [config.method]
    names = [spec["name"] for spec in specs]
    if looking := [name for name in names if issubclass(methods.METHODS[name], methods.Preparing)]:
        yield (
            "method",
            f"{' and '.join(looking)} looks at images with one label each before it trains, and here are texts; use "
            "another method",
        )
    if config.cache_features and (learning := [name for name in names if name != "linear"]):
        yield (
            "cache_features",
            f"cache_features keeps what the frozen tower makes of an image, and {' and '.join(learning)} changes that "
            "at every step; leave it out, or give method {name: linear}",
        )


def resolve(config: MLLMConfig) -> dict[str, Any]:
    """Connector and language method with every option written out."""
    return {
        "connector": connectors.resolve(config.connector),
        "language_method": adapt.resolve(config.language_method),
    }


class MLLMJob:
    """A run of `kind: mllm`, built and not started.

    Args:
        config: Of the run.
    """

    def __init__(self, config: MLLMConfig) -> None:
        self.config = config
        vision = build_tower(config.vision, config.method, config.seed)
        spoken = language.load(config.language.name, config.language.pretrained, config.language.dtype, config.seed)
        self.model = build_model(config, vision, spoken)
        backbone = vision.backbone
        self.data = MultimodalData(
            config.data,
            spoken.tokenizer,
            cast(int, self.model.connector.tokens),
            backbone.image_size,
            cast(Interpolation, backbone.interpolation),
            tuple(backbone.normalization[0]),
            config.seed,
            config.cache_features,
            spoken.tokenizer if isinstance(self.model.connector, Instructed) else None,
        )
        _check_context(config, spoken)
        score = config.evaluation.score
        if score != "none" and not self.data.provenance["counts"]["test"]:
            raise ValueError(
                f"evaluation.score {score} scores answers to test samples, and {config.data.task} has none; give "
                "data.files.test, or evaluation.score none."
            )
        parameter_groups(self.model.components(), config.optim)  # refuses to train nothing, before there is a folder
        features = Features(vision, self.model.mean, self.model.std) if config.cache_features else None
        self.task = Instruct(self.model, self.data, config.optim, config.evaluation, features)

    def save(self, path: Path, row: Mapping[str, Any]) -> None:
        """Write the adapter, with what it takes to use it."""
        save_adapter(path, self.model, manifest(self.config, self.data, row), self._whole(path))

    def _whole(self, adapter: Path) -> dict[str, Tensor] | None:
        """What is trained, from the last checkpoint, where this process has only a share of it."""
        if not isinstance(self.model, FSDPModule):
            return None
        state = checkpoint_file.read(RunFolder(adapter.parent, "").checkpoint)["state_dict"]
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}

    def said(self) -> dict[str, Any]:
        """What a row says of models and weights."""
        config = self.config
        return {
            "backbone": tower_of(self.model.vision, config.vision),
            "language": vars(config.language) | {"weights": vars(self.model.about.weights)},
            "language_method": config.language_method,
            "placement": {name: len(found) for name, found in self.model.placement().items()},
            "start": str(config.start) if config.start else None,
            "cache_features": config.cache_features,
            "evaluation": vars(config.evaluation),
            "images_lost": self.data.skipped,
        }


def _check_context(config: MLLMConfig, spoken: language.Language) -> None:
    front = 0 if spoken.prefix is None else int(spoken.prefix.tokens)  # type: ignore[arg-type]
    if config.data.max_length + front > spoken.context:
        behind = f" with the {front} tokens of its prefix" if front else ""
        raise ValueError(
            f"data.max_length is {config.data.max_length}, and {config.language.name} was made for {spoken.context} "
            f"positions{behind}; give data.max_length {spoken.context - front} or less."
        )


def assemble(config: MLLMConfig) -> MLLMJob:
    """Models and data of a configuration."""
    return MLLMJob(config)


def build_tower(config: VisionConfig, method: Any, seed: int) -> Tuned:
    """The vision tower of a configuration."""
    backbone = backbones.create(config.backbone, config.pretrained, config.image_size, seed)
    backbone.normalization = normalization(config.normalization, backbone)
    torch.manual_seed(seed)  # whatever loading drew
    return tower(backbone, method, config.layer, config.prefix, config.norm)


def build_model(config: MLLMConfig, vision: Tuned, spoken: language.Language) -> VLM:
    """Tower, connector and language model, begun as the configuration says."""
    torch.manual_seed(config.seed)
    adapt.apply(spoken, config.language_method)
    connector = connectors.build(config.connector, vision_shape(vision), spoken.shape)
    model = VLM(vision, connector, spoken, config.language.checkpointing)
    if config.start is not None:
        from mllm.start import start_from

        start_from(config.start.expanduser(), model, config.method, config.language_method)
    if config.freeze_connector:
        connector.requires_grad_(False)
    return model


def tower_of(vision: Tuned, config: VisionConfig) -> dict[str, Any]:
    """A tower as a row and a manifest have it."""
    backbone = vision.backbone
    mean, std = backbone.normalization
    return {
        "name": config.backbone,
        "pretrained": config.pretrained,
        "image_size": list(backbone.image_size),
        "layer": config.layer,
        "prefix": config.prefix,
        "norm": config.norm,
        "weights": vars(backbone.weights),
        "normalization": {"name": config.normalization, "mean": list(mean), "std": list(std)},
    }


def manifest(config: MLLMConfig, data: MultimodalData, row: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter says about itself beside what `mllm.adapter` knows."""
    return {
        "kind": config.kind,
        "seed": config.seed,
        "backbone": row["backbone"],
        "method": row["method"],
        "connector": config.connector,
        "language": {
            "name": config.language.name,
            "pretrained": config.language.pretrained,
            "dtype": config.language.dtype,
        },
        "language_method": config.language_method,
        "preparation": data.preparation,
        "task": config.data.task,
        "parameters": row["parameters"],
        "result": {"id": row["id"], "test": row["test"]},
    }
