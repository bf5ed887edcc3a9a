"""The kinds of runs: the schema of each, and what of its settings only the code of that kind can check."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mllm.blip2.schema import Blip2Config
from mllm.schema import MLLMConfig
from vpeft.dense.multitask_schema import MultiTaskConfig
from vpeft.dense.openvocab_schema import OpenVocabConfig
from vpeft.dense.segmentation_schema import SegmentationConfig
from vpeft.schema import Config, ConfigError
from vpeft.setting import Setting
from vpeft.yaml_file import plain

# Methods on a backbone: what vpeft.run builds, and counts in epochs.
TunedConfig = Config | SegmentationConfig | MultiTaskConfig
# Models that bring their own runs, counted in steps.
SteppedConfig = OpenVocabConfig | MLLMConfig | Blip2Config
AnyConfig = TunedConfig | SteppedConfig
# The schema of every kind of run.
KINDS: dict[str, type[AnyConfig]] = {
    "classification": Config,
    "segmentation": SegmentationConfig,
    "multitask": MultiTaskConfig,
    "openvocab": OpenVocabConfig,
    "mllm": MLLMConfig,
    "blip2": Blip2Config,
}
# Kinds with entries beside `method`. `mistakes(config)` says what is wrong with them, by dotted key; `resolve(config)`
# gives them with every option written out.
WITH_ENTRIES = {"segmentation": "vpeft.dense.build", "mllm": "mllm.build", "blip2": "mllm.blip2.build"}
Settings = Mapping[str, Setting]  # by dotted key


def complete(config: Any, settings: Settings, recipe: Settings, source: str) -> Any:
    """The configuration with every option of its entries written out, after all of them are known to be right.

    Args:
        config: Its types and ranges are right.
        settings: What it was built from.
        recipe: The same without the command line.
        source: Where settings that nobody gave come from, in errors.

    Raises:
        ConfigError: The first mistake.
    """
    if isinstance(config, OpenVocabConfig):
        return config
    # Last, because the signatures of the methods cannot be read without importing torch.
    from vpeft import methods

    for setting in (recipe.get("method"), settings.get("method")):
        _raised(methods.check, setting.value if setting else config.method, setting.source if setting else source)
    if isinstance(config, Config) and config.cache_features:
        _raised(methods.check_cacheable, config.method, settings["cache_features"].source)
    if config.kind in WITH_ENTRIES:
        build = importlib.import_module(WITH_ENTRIES[config.kind])
        _refuse(build.mistakes(config), settings, source)
        for key, entry in build.resolve(config).items():
            setattr(config, key, plain(entry))
    if isinstance(config, MultiTaskConfig):
        from vpeft.dense import multitask_build

        _refuse(multitask_build.mistakes(config), settings, source)
        specs = multitask_build.method_spec(config)
        config.method = specs if isinstance(config.method, list) else specs[0]
    config.method = plain(methods.resolve(config.method))
    return config


def _raised(check: Callable[[Any], object], value: Any, source: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _refuse(mistakes: Any, settings: Settings, source: str) -> None:
    for key, sentence in mistakes:
        raise ConfigError(f"{settings[key].source if key in settings else source}: {sentence}")
