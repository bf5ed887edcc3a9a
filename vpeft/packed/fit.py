"""Which runs can be packed, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpeft.config import Config, ConfigError
from vpeft.methods import METHODS
from vpeft.record import method_list
from vpeft.schema import values

_OWN_FUNCTION = "its gradient is a function of its own, which torch.vmap cannot compute for several models at once"
# Methods that no pack takes -> why.
NOT_PACKED = {
    "fishmask": _OWN_FUNCTION,
    "full": "it trains every weight of the backbone, so that there is none to share",
    "lion": _OWN_FUNCTION,
}
# What the one model behind all members of a pack is made of, or runs with.
_SHARED = (
    "method",
    "backbone",
    "pretrained",
    "image_size",
    "normalization",
    "drop_path",
    "data.batch_size",
    "train.precision",
    "train.frozen",
    "train.accelerator",
)


def packable() -> dict[str, str | None]:
    """Every method: None where a pack takes it, else why it does not."""
    return {name: NOT_PACKED.get(name) for name in METHODS}


def check(configs: Sequence[Config]) -> None:
    """Refuse runs that cannot be one pack.

    Args:
        configs: Complete (`vpeft.run.complete`).

    Raises:
        ConfigError: The first reason, and what to do.
    """
    if not configs:
        raise ConfigError("A pack needs at least one run, and was given none.")
    for config in configs:
        _check_one(config)
    first = values(configs[0])
    for position, config in enumerate(configs[1:], start=1):
        _check_shared(first, values(config), position)
    for position, config in enumerate(configs):
        if config in configs[:position]:
            raise ConfigError(
                f"Members {configs.index(config)} and {position} of the pack are one and the same run; give each once."
            )


def _check_one(config: Config) -> None:
    if not isinstance(config, Config):
        raise ConfigError(f"A pack is for kind classification, and a member is of kind {config.kind}. Train it alone.")
    for spec in method_list(config):
        if why := _reason(spec):
            raise ConfigError(f"method {spec['name']} cannot be packed: {why}. Train it alone.")
    train = config.train
    if config.cache_features:
        raise ConfigError(
            "cache_features cannot be packed: it runs the backbone once for every image, so that no step needs it. "
            "Train such runs one after another, or leave cache_features out."
        )
    if train.compile:
        raise ConfigError("train.compile cannot be packed: it compiles one model, and a pack runs several as another.")
    if train.devices != 1 or train.nodes != 1 or train.strategy != "auto":
        raise ConfigError(
            f"A pack is one process on one device; train.devices is {train.devices}, train.nodes {train.nodes} and "
            f"train.strategy {train.strategy}. Give 1, 1 and auto, or train such runs alone."
        )


def _reason(spec: Mapping[str, Any]) -> str | None:
    if spec["name"] == "vp" and spec["kind"] == "random_patch":
        return "kind random_patch draws one place for the patch at every step, which all members would share"
    return NOT_PACKED.get(spec["name"])


def _check_shared(first: Mapping[str, Any], other: Mapping[str, Any], position: int) -> None:
    for key in (*_SHARED, "seed"):
        if first[key] == other[key]:
            continue
        if key != "seed":
            raise ConfigError(
                f"Members 0 and {position} of the pack differ in {key}, {first[key]} and {other[key]}. One model runs "
                f"for all members, so they share {', '.join(_SHARED)}; put others into a pack of their own."
            )
        if first["pretrained"] == "none":
            raise ConfigError(
                f"Members 0 and {position} of the pack have random backbones of seeds {first[key]} and {other[key]}, "
                "which share no weights. Give them one seed, or weights in pretrained."
            )
