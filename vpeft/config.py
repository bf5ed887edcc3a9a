"""YAML files and command lines -> a checked configuration, before anything heavy is imported.

A file says its `kind` of run (classification where it says none) and states a recipe. Its optional `embedded:`
section holds the values that replace those above it for the embedded tasks (while `data.root` is not given, or
where `data.task` names one), so that the same file runs on the small suite that installs from published packages.
`--protocol NAME` lays the settings of configs/protocols/NAME.yaml over all that, its own `embedded:` section too;
`protocol: NAME` in the file lays them under it. The command line has the last word. What comes out is one resolved
configuration without sections of that sort; `to_yaml` writes it as a file that runs again as it is.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import jsonargparse
import yaml

from vpeft import protocols
from vpeft.data.tables import EMBEDDED
from vpeft.kinds import KINDS, AnyConfig, TunedConfig, complete
from vpeft.nearest import did_you_mean
from vpeft.schema import Config, ConfigError, DataConfig, HeadConfig, OptimConfig, TrainConfig, mistakes, values
from vpeft.setting import Setting, alternatives, check_type, is_entry, near, parse_types, quoted, schema
from vpeft.yaml_file import load_yaml, plain, read_yaml

__all__ = [
    "AnyConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "HeadConfig",
    "OptimConfig",
    "TrainConfig",
    "TunedConfig",
    "parse",
    "to_yaml",
]

COMMAND_LINE = "command line"
Settings = dict[str, Setting]  # by dotted key: "method", "data.task"; in overrides also "method.prompts"


def parse(argv: Sequence[str], prog: str = "tools/train.py") -> AnyConfig:
    """Read `CONFIG [--key value ...] [--print_config]`.

    Args:
        argv: Words of the command line. Keys are dotted (`--data.task`, `--method.prompts`); values are YAML.
        prog: Name of the command in `--help`.

    Raises:
        ConfigError: The first mistake.
        SystemExit: With 0, after `--help` or `--print_config` has been printed.
    """
    if "-h" in argv or "--help" in argv:
        files = [word for word in argv if word.endswith(".yaml")]
        print(_help(prog, _kind(read_yaml(files[0]), files[0]) if files else Config), end="")
        raise SystemExit(0)
    files, overrides = split_words([word for word in argv if word != "--print_config"])
    if len(files) != 1:
        given = f"got {' and '.join(files)}" if files else "give one, such as configs/vtab/vpt.yaml"
        raise ConfigError(f"{COMMAND_LINE}: one config file is expected; {given}")
    config = resolve(read_yaml(files[0]), files[0], overrides)
    if "--print_config" in argv:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def to_yaml(config: AnyConfig) -> str:
    """The resolved configuration as the text of a config file, which `parse` reads back to an equal one."""
    return yaml.safe_dump(plain(asdict(config)), sort_keys=False, allow_unicode=True)


def split_words(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Positional words, and the `--key value` or `--key=value` pairs, in their order.

    Raises:
        ConfigError: A key without a value.
    """
    positional, pairs, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        key, given, value = word[2:].partition("=")
        if not given and (not rest or rest[0].startswith("--")):
            raise ConfigError(f"{COMMAND_LINE}: --{key} needs a value: --{key} VALUE")
        pairs.append((key, value if given else rest.pop(0)))
    return positional, pairs


def resolve(tree: Mapping[str, Any], source: str, overrides: Iterable[tuple[str, str]] = ()) -> AnyConfig:
    """The configuration of a file's content and of what overrides it, in the order the module's docstring gives.

    Args:
        tree: Content of the file.
        source: Name of the file in errors.
        overrides: Dotted keys and their values in YAML.

    Raises:
        ConfigError: The first mistake.
    """
    kind = _kind(tree, source)
    file = _layer(kind, tree, source)
    given = [item for key, text in overrides for item in _override(kind, key, text)]
    named = dict(given).get("protocol") or file[0].get("protocol")
    over = "protocol" in dict(given)
    layers = [file]
    if named and named.value is not None:
        protocol = _layer(kind, protocols.read(named.value, named.source), str(protocols.file(named.value)))
        layers.insert(1 if over else 0, protocol)
    embedded = _is_embedded(file[0] | dict(given))
    recipe: Settings = {}
    for settings, on_embedded in layers:
        recipe = _merge(kind, recipe, [*settings.items(), *(on_embedded.items() if embedded else ())])
    settings = _merge(kind, recipe, given)
    config = _build(kind, settings, source)
    return complete(config, settings, recipe, source)


def classifying(config: AnyConfig, source: str) -> Config:
    """`config`, which has to be one of classification.

    Raises:
        ConfigError: It is of another kind.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"{source}: this is for kind classification, and the file is of kind {config.kind}")
    return config


def departures(config: AnyConfig) -> dict[str, Any]:
    """The settings in which a configuration departs from the protocol it names, by dotted key."""
    if not isinstance(config, TunedConfig) or config.protocol is None:
        return {}
    source = str(protocols.file(config.protocol))
    settings, on_embedded = _layer(type(config), protocols.read(config.protocol, "protocol"), source)
    chosen = values(config)
    if _is_embedded({key: Setting(value, source) for key, value in chosen.items()}):
        settings = settings | on_embedded
    return {key: chosen[key] for key, setting in settings.items() if chosen[key] != setting.value}


def _kind(tree: Mapping[str, Any], source: str) -> type[AnyConfig]:
    name = tree.get("kind", "classification")
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"{source}: there is no kind {quoted(name)}; {did_you_mean(str(name), KINDS)}")
    return KINDS[name]


def _layer(kind: type, tree: Mapping[str, Any], source: str) -> tuple[Settings, Settings]:
    """The settings of a file, and those of its `embedded:` section."""
    tree = dict(tree)
    embedded = _flatten(kind, _own(tree.pop("embedded", None)), source, "embedded", "")
    return _flatten(kind, _own(tree), source), embedded


def _own(tree: Any) -> Any:
    """All but the sections that `vpeft.search` and `vpeft.suite.sweep` read."""
    others = ("search", "sweep")
    return {key: value for key, value in tree.items() if key not in others} if isinstance(tree, Mapping) else tree


def _is_embedded(settings: Settings) -> bool:
    """Whether the data is a task of the embedded suite, in the user cache or under a root of one's own."""
    root, task, layout = (
        settings[key].value if key in settings else None for key in ("data.root", "data.task", "data.format")
    )
    return root is None or (task in EMBEDDED and layout in (None, "auto", "embedded"))


def _flatten(kind: type, tree: Any, source: str, shown: str = "", prefix: str = "") -> Settings:
    """Settings of a nested mapping; `shown` is what errors write before a key, `prefix` what the schema does."""
    if tree is None:  # a section without content
        return {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: {shown} holds several settings, not the single value {quoted(tree)}")
    found: Settings = {}
    for key, value in tree.items():
        name, label = f"{prefix}{key}", f"{shown}.{key}" if shown else str(key)
        if name in schema(kind):
            found[name] = Setting(value, source)
            check_type(kind, name, label, found[name])
        elif any(known.startswith(f"{name}.") for known in schema(kind)):
            found |= _flatten(kind, value, source, label, f"{name}.")
        else:
            raise ConfigError(f"{source}: there is no '{label}'; {near(kind, name, prefix)}")
    return found


def _override(kind: type, key: str, text: str) -> Iterator[tuple[str, Setting]]:
    """The settings in `--key text`, where the text is YAML, or as it stands for texts and paths."""
    allowed = alternatives(schema(kind).get(key, Any))
    literal = any(one in (str, Path) or get_origin(one) is Literal for one in allowed)
    value: Any = text
    if not literal or (type(None) in allowed and text == "null"):
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{COMMAND_LINE}: the value of --{key} is not valid YAML: {text}") from error
    if "." in key and is_entry(kind, key.partition(".")[0]):
        yield key, Setting(value, COMMAND_LINE)
        return
    tree = functools.reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
    yield from _flatten(kind, tree, COMMAND_LINE).items()


def _merge(kind: type[AnyConfig], settings: Settings, given: Iterable[tuple[str, Setting]]) -> Settings:
    """Later settings replace earlier ones; the options of an entry are merged while its name stays the same."""
    merged = dict(settings)
    for key, new in given:
        entry = key.partition(".")[0]
        if is_entry(kind, entry):
            old = merged.get(entry, Setting(getattr(kind(), entry), new.source))
            merged[entry] = Setting(_entry(old, key, new), new.source)
        else:
            merged[key] = new
    return merged


def _entry(old: Setting, key: str, new: Setting) -> Any:
    entry, _, option = key.partition(".")
    if option:
        if isinstance(old.value, list):
            named = json.dumps([{"name": one["name"]} for one in old.value])
            raise ConfigError(
                f"{new.source}: --{key} does not say which of the {len(old.value)} entries of {entry} in {old.source} "
                f"it is for; give the whole list, as in --{entry} '{named}'"
            )
        if old.value is None:
            raise ConfigError(f"{new.source}: --{key} has no {entry} that it is for; give --{entry} with a name first")
        if option == "name" and new.value != old.value.get("name"):
            return {"name": new.value}  # whose options are others
        return {**old.value, option: new.value}
    both = isinstance(old.value, dict) and isinstance(new.value, dict)
    return (
        {**old.value, **new.value}
        if both and new.value.get("name", old.value.get("name")) == old.value.get("name")
        else new.value
    )


def _build(kind: type[AnyConfig], settings: Settings, source: str) -> AnyConfig:
    nested: dict[str, Any] = {}
    for key, setting in settings.items():
        *groups, leaf = key.split(".")
        functools.reduce(lambda level, group: level.setdefault(group, {}), groups, nested)[leaf] = setting.value
    found = {key: nested.pop(key) for key in list(nested) if is_entry(kind, key)}
    config: AnyConfig = _dataclass(kind, parse_types(kind, nested))
    for key, entry in found.items():
        setattr(config, key, entry)
    for key, sentence in mistakes(config):
        raise ConfigError(f"{settings[key].source if key in settings else source}: {sentence}")
    return config


def _dataclass(kind: type, namespace: jsonargparse.Namespace) -> Any:
    # By hand: `parser.instantiate` calls whatever a `class_path` inside an untyped value names.
    hints = get_type_hints(kind)
    return kind(
        **{
            key: _dataclass(hints[key], value) if is_dataclass(hints[key]) else value
            for key, value in vars(namespace).items()
        }
    )


def _help(prog: str, kind: type[AnyConfig]) -> str:
    parser = jsonargparse.ArgumentParser(prog=prog, usage=f"{prog} CONFIG [--key value ...] [--print_config]")
    parser.add_class_arguments(kind)
    for action in parser._actions:
        # Whole sections and `--method+` are forms of jsonargparse that are not read here.
        if is_dataclass(get_type_hints(kind).get(action.dest)):
            action.help = argparse.SUPPRESS
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
    return parser.format_help()
