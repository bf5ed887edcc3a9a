"""Which values settings take, of whatever kind of run: the ranges of numbers, and what contradicts itself."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

# What a value must be, by dotted key. Types are in the annotations of the schemas.
_BOUNDS: list[tuple[str, Callable[[float, float], bool], dict[str, float]]] = [
    (
        "at least",
        operator.ge,
        {
            "seed": 0,
            "drop_path": 0,
            "head.sources": 1,
            "head.every": 0,
            "data.batch_size": 1,
            "data.eval_batch_size": 1,
            "data.workers": 0,
            "optim.weight_decay": 0,
            "optim.momentum": 0,
            "optim.head_lr": 0,
            "optim.head_weight_decay": 0,
            "optim.warmup_epochs": 0,
            "optim.min_lr": 0,
            "train.epochs": 1,
            "train.accumulate": 1,
            "train.label_smoothing": 0,
            "train.val_every": 1,
            "train.nodes": 1,
        },
    ),
    (
        "above",
        operator.gt,
        {"optim.lr": 0, "optim.power": 0, "optim.layer_decay": 0, "optim.clip": 0, "train.clip": 0, "train.ema": 0},
    ),
    (
        "below",
        operator.lt,
        {"seed": 2**32, "drop_path": 1, "optim.momentum": 1, "train.ema": 1, "train.label_smoothing": 1},
    ),
    ("at most", operator.le, {"optim.min_lr": 1, "optim.layer_decay": 1}),
]


def values(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by dotted key, `{"method": ..., "data.task": ...}`."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        found |= values(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return found


def mistakes(config: Any) -> Iterator[tuple[str, str]]:
    """Every setting out of its range, or at odds with another: its dotted key and the sentence that says so.

    Args:
        config: Of any kind (`vpeft.config.KINDS`).
    """
    settings = values(config)
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"{key} must be a finite number, not {value}"
    for words, holds, bounds in _BOUNDS:
        for key, bound in bounds.items():
            if settings.get(key) is not None and not holds(settings[key], bound):
                yield key, f"{key} must be {words} {bound}, not {settings[key]}"
    size = settings.get("image_size")
    if size is not None and (min([size] if isinstance(size, int) else size, default=0) < 1):
        yield "image_size", f"image_size must be above 0, not {size}"
    if isinstance(size, list) and len(size) != 2:
        yield "image_size", f"image_size must be one side or [height, width], not {len(size)} numbers"
    if config.kind != "classification" and settings.get("train.test") is False:
        yield "train.test", "train.test false belongs to kind classification"
    if config.train.devices < 1 and config.train.devices != -1:
        yield "train.devices", f"train.devices must be at least 1, or -1 for all, not {config.train.devices}"
    if settings.get("train.frozen") == "bf16" and (precision := settings["train.precision"]) != "bf16-mixed":
        yield (
            "train.frozen",
            "train.frozen bf16 stores the weights that train.precision bf16-mixed casts at every step, and "
            + f"train.precision is {precision}; give bf16-mixed, or leave train.frozen out",
        )
    warmup, epochs = settings.get("optim.warmup_epochs"), settings.get("train.epochs")
    if warmup is not None and epochs is not None and warmup >= epochs:
        yield (
            "optim.warmup_epochs",
            f"optim.warmup_epochs is {warmup:g} and train.epochs is {epochs}: the learning rate would never reach its "
            + f"peak; give, for example, --optim.warmup_epochs {epochs / 10:g}",
        )
    if config.name is not None and (config.name in ("", ".", "..") or "/" in config.name):
        yield "name", f"name must be the name of one folder, not '{config.name}'; its parent is 'output'"
    yield from config.conflicts()
