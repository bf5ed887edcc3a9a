"""What is swept: `--sweep lr,wd`, `--sweep optim.lr=1e-3,1e-2`, and the `sweep:` section of a config file.

    sweep: {lr: [1e-3, 1e-2], wd: [1e-4, 1e-3], method.prompts: [10, 50]}

The section states values of this file's recipe, for keys that the command line names without values; a section
`sweep:` inside `embedded:` replaces those keys for the embedded tasks. `lr` and `wd` are short for optim.lr and
optim.weight_decay, which have values of their own where a file states none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from vpeft.config import COMMAND_LINE, Config, ConfigError
from vpeft.data.tables import EMBEDDED
from vpeft.setting import quoted
from vpeft.yaml_file import load_yaml

SHORT = {"lr": "optim.lr", "wd": "optim.weight_decay"}
# The grid of OSU's study (Mai et al., arXiv:2409.16434) for AdamW.
DEFAULTS: dict[str, list[Any]] = {"optim.lr": [1e-3, 1e-2], "optim.weight_decay": [1e-4, 1e-3]}
# Set by a suite itself.
_OWN = ("data.task", "data.root", "data.split", "seed", "output", "name", "kind", "protocol", "train.resume")
_OWN += ("train.test", "train.selection", "train.val_every")

Swept = dict[str, list[Any] | None]  # by dotted key; None takes the file's values


def parse(given: Sequence[str]) -> Swept:
    """The values of all `--sweep` on a command line.

    Raises:
        ConfigError: A key twice, one that cannot be swept, or values that are not several of YAML.
    """
    found: Swept = {}
    for words in given:
        key, stated, values = words.partition("=")
        for name in [key] if stated else words.split(","):
            full = _full(name.strip(), COMMAND_LINE)
            if full in found:
                raise ConfigError(f"{COMMAND_LINE}: --sweep names {full} twice")
            found[full] = _values(values, full) if stated else None
    return found


def grid(swept: Swept, tree: Mapping[str, Any], source: str, config: Config) -> dict[str, list[Any]]:
    """The swept settings of one file and all their values.

    Args:
        swept: What the command line asks for.
        tree: Content of the file.
        source: Its name.
        config: Of one task, for whether that is an embedded one.

    Raises:
        ConfigError: A key has no values anywhere, or the section is malformed.
    """
    stated = _section(tree.get("sweep"), source)
    if config.data.root is None or (config.data.task in EMBEDDED and config.data.format in ("auto", "embedded")):
        inner = tree.get("embedded")
        stated |= _section(inner.get("sweep") if isinstance(inner, Mapping) else None, source)
    found: dict[str, list[Any]] = {}
    for key, values in swept.items():
        values = values or stated.get(key) or DEFAULTS.get(key)
        if values is None:
            raise ConfigError(
                f"{COMMAND_LINE}: --sweep {key} has no values: {source} has no sweep section that states some; give "
                f"them, as in --sweep {key}=A,B"
            )
        found[key] = values
    return found


def points(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination, the last key changing fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _section(section: Any, source: str) -> dict[str, list[Any]]:
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: sweep holds several settings, not the single value {quoted(section)}")
    found: dict[str, list[Any]] = {}
    for name, values in section.items():
        key = _full(str(name), source)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{source}: sweep.{name} must be a list of values, not {quoted(values)}")
        found[key] = _distinct(values, key, source)
    return found


def _full(name: str, source: str) -> str:
    key = SHORT.get(name, name)
    if key in _OWN:
        raise ConfigError(f"{source}: {key} cannot be swept: a suite sets it itself")
    if "." not in key and key not in ("drop_path", "image_size", "normalization", "backbone"):
        raise ConfigError(
            f"{source}: there is no '{name}' to sweep; give lr, wd, or dotted keys such as method.prompts=10,50"
        )
    return key


def _values(text: str, key: str) -> list[Any]:
    try:
        values = load_yaml(f"[{text}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: --sweep {key}={text} is no list of values, such as 1e-3,1e-2") from error
    if not values:
        raise ConfigError(f"{COMMAND_LINE}: --sweep {key}= has no values; give them, as in --sweep {key}=A,B")
    return _distinct(values, key, COMMAND_LINE)


def _distinct(values: list[Any], key: str, source: str) -> list[Any]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ConfigError(f"{source}: the values of {key} name {quoted(value)} twice")
    return values
