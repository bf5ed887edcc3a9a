"""What is written down about a run: its result row, the adapter's manifest, one line in the terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

import vpeft
from vpeft import methods
from vpeft.config import AnyConfig, TunedConfig, departures
from vpeft.dense.multitask_schema import MultiTaskConfig
from vpeft.job import Data, Measured, Task
from vpeft.results.row import Row, git_commit, now, versions
from vpeft.run_folder import RunFolder
from vpeft.schema import values
from vpeft.tasks.averaging import BestOnVal
from vpeft.tasks.timing import Timing, peak_memory
from vpeft.tuned import Tuned


def parameter_counts(tuned: Tuned) -> dict[str, int]:
    """Trained parameters of the method, of neck and head, and adopted from the backbone; frozen and total.

    Of a whole model, so before training: FSDP would leave a share of every parameter in each process.
    """
    groups = tuned.parameter_groups()
    total = sum(parameter.numel() for parameter in tuned.parameters())
    names = {"method": "method", "neck": "neck", "head": "head", "adopted": "backbone"}
    counts = {name: sum(parameter.numel() for _, parameter in groups[group]) for name, group in names.items()}
    return counts | {"frozen": total - sum(counts.values()), "total": total}


def method_list(config: TunedConfig) -> list[dict[str, Any]]:
    """The configured methods as a list, every option written out."""
    specs = methods.resolve(config.method)
    return specs if isinstance(specs, list) else [specs]


def plain_settings(config: AnyConfig) -> dict[str, Any]:
    """All settings by dotted key, paths as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in values(config).items()}


def describe(config: TunedConfig, task: Task, data: Data, parameters: dict[str, int]) -> str:
    """What is about to be trained, in one line."""
    images, weights = data.provenance["counts"], task.tuned.backbone.weights
    tested = f"{images['test']} images for the test" if config.train.test else "no test"
    names = "+".join(spec["name"] for spec in method_list(config))
    trained = parameters["total"] - parameters["frozen"]
    return (
        f"{names} on {config.backbone} ({weights.source} weights), {config.data.task}: "
        f"{_aim(config, task)}, {images['train']} images to train on, {tested}, "
        f"{trained:,} of {parameters['total']:,} parameters trained"
    )


def _aim(config: TunedConfig, task: Task) -> str:
    if isinstance(config, MultiTaskConfig):
        return f"{len(config.data.tasks)} tasks ({', '.join(config.data.tasks)})"
    return f"{len(task.classes)} classes"


def manifest(config: TunedConfig, task: Task, data: Data, row: Row) -> dict[str, Any]:
    """What every adapter file says about itself; `vpeft.checkpoint` adds its format and checksum."""
    assert row["test"] is not None, "an adapter is saved after the test"
    return {
        "vpeft": vpeft.__version__,
        "kind": config.kind,
        "backbone": row["backbone"] | {"seed": config.seed},
        "method": method_list(config),
        "head": row["head"],
        "drop_path": config.drop_path,
        "classes": task.classes,
        **row["preprocessing"],
        "task": config.data.task,
        "split": data.provenance["split"],
        "parameters": {name: row["parameters"][name] for name in ("method", "neck", "head", "adopted")},
        "result": {"id": row["id"], f"test_{_metric(task)}": row["test"][_metric(task)]},
    }


def result_row(
    config: TunedConfig,
    run: RunFolder,
    task: Task,
    data: Data,
    timing: Timing,
    val: Measured | None,
    best: BestOnVal | None,
    parameters: dict[str, int],
    trainer: L.Trainer,
) -> Row:
    """The row of a run that has been tested, or evaluated where it is not to be tested.

    Args:
        val: Evaluation on the validation split after the last epoch.
        best: What chose the epoch, or None for the last one.
        parameters: `parameter_counts` before training.

    Raises:
        FloatingPointError: The loss of the test, or of the validation in its place, is not a finite number.
    """
    assert task.evaluation is not None, "a row is written after a measurement"
    part = "test" if config.train.test else "val"
    if not math.isfinite(task.evaluation.loss):
        raise FloatingPointError(
            f"The {part} loss is {task.evaluation.loss}, not a finite number, so {run.path} gets no result row and no "
            f"adapter: the logits of a {part} image overflow. Try a lower optim.lr, or --train.precision 32-true."
        )
    settings = plain_settings(config)
    del settings["train.resume"]  # says nothing about the run as a whole
    epochs = config.train.epochs
    chosen = (best.epoch, best.score) if best else (epochs, val.score if val else None)
    return Row(
        id=run.id,
        date=now(),
        kind=config.kind,
        task=config.data.task,
        protocol=_protocol(config),
        method=method_list(config),
        backbone=_backbone(config, task.tuned),
        neck=getattr(config, "neck", None),
        head=asdict(config.head) if is_dataclass(config.head) else config.head,
        preprocessing=_preprocessing(config, task, data),
        data=data.provenance | {name: settings[f"data.{name}"] for name in ("batch_size", "drop_last", "workers")},
        optim=_section(settings, "optim"),
        train=_section(settings, "train"),
        epochs=epochs,
        selection={"rule": config.train.selection, "epoch": chosen[0], f"val_{_metric(task)}": chosen[1]},
        seed=config.seed,
        test=_tested(task) if config.train.test else None,
        val=val.measures() if val else None,
        parameters=parameters,
        time={"wall_seconds": timing.elapsed()} | timing.summary(),
        memory=memory(trainer),
        device=device(trainer),
        versions=versions(),
        git=git_commit(),
        folder=str(run.path),
    )


def _tested(task: Task) -> dict[str, Any]:
    assert task.evaluation is not None, "a row is written after a measurement"
    return task.evaluation.measures() | {"per_class": dict(zip(task.classes, task.evaluation.per_class, strict=True))}


def _metric(task: Task) -> str:
    assert task.evaluation is not None, "what was tested has been measured"
    return task.evaluation.metric


def _protocol(config: TunedConfig) -> dict[str, Any] | None:
    return {"name": config.protocol, "changed": departures(config)} if config.protocol else None


def _backbone(config: TunedConfig, tuned: Tuned) -> dict[str, Any]:
    weights = tuned.backbone.weights
    return {
        "name": config.backbone,
        "pretrained": config.pretrained,
        "image_size": list(tuned.backbone.image_size),
        "drop_path": config.drop_path,
        "weights": {"source": weights.source, "origin": weights.origin, "sha256": weights.sha256},
    }


def _preprocessing(config: TunedConfig, task: Task, data: Data) -> dict[str, Any]:
    return {
        "normalization": {
            "name": config.normalization,
            "mean": list(task.normalization[0]),
            "std": list(task.normalization[1]),
        },
        **data.preparation,
    }


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{name}.")}


def memory(trainer: L.Trainer) -> dict[str, Any]:
    """The most that was held, and of what."""
    place = trainer.strategy.root_device
    return {"peak_bytes": peak_memory(place), "of": "tensors on the GPU" if place.type == "cuda" else "the process"}


def device(trainer: L.Trainer) -> dict[str, Any]:
    """What computed."""
    place = trainer.strategy.root_device
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return {"name": name, "processes": trainer.world_size, "threads": torch.get_num_threads()}
