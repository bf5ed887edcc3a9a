"""The kinds of runs: the schema of each, and what of its settings only the code of that kind can check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vpeft.dense.multitask_schema import MultiTaskConfig
from vpeft.dense.openvocab_schema import OpenVocabConfig
from vpeft.dense.segmentation_schema import SegmentationConfig
from vpeft.schema import Config, ConfigError
from vpeft.setting import Setting
from vpeft.yaml_file import plain

# Methods on a backbone: what vpeft.run builds, and counts in epochs.
TunedConfig = Config | SegmentationConfig | MultiTaskConfig
AnyConfig = TunedConfig | OpenVocabConfig
# The schema of every kind of run.
KINDS: dict[str, type[AnyConfig]] = {
    "classification": Config,
    "segmentation": SegmentationConfig,
    "multitask": MultiTaskConfig,
    "openvocab": OpenVocabConfig,
}
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
    if isinstance(config, SegmentationConfig):
        from vpeft.dense import build

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
