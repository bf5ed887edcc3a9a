"""The settings of a search: the `search:` section of a config file, and `--search.key value`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import jsonargparse
import yaml

from vpeft.config import COMMAND_LINE, Config, ConfigError, classifying, resolve, split_words
from vpeft.data.tables import EMBEDDED
from vpeft.nearest import did_you_mean
from vpeft.setting import alternatives, quoted, words
from vpeft.yaml_file import load_yaml, read_yaml

PROG = "tools/search.py"
KINDS = ("prompts", "lora", "adapter")  # of modules


@dataclass
class SearchConfig:
    """How the best subnet is looked for; the defaults are the official code's for VTAB-1k.

    Args:
        budget: Most parameters of the method; the head is not counted.
        epochs: Of training the supernet.
        lr: Peak learning rate of the supernet.
        prompts: Widths to choose from, of prompts in a block.
        lora: The same, ranks of LoRA.
        adapter: The same, hidden units of an adapter.
        depths: Numbers of blocks a module may stand in, counted from the first; null is the four quarters.
        generations: Populations in all, the random one too.
        population: Architectures measured in a generation.
        parents: Best architectures so far, of which new ones are made.
        mutations: Of them in a generation.
        crossovers: Of them in a generation.
        mutation: Probability that a module, and then each of its widths, is drawn again.
        deepening: Probability that a drawn module gets another depth.
    """

    budget: int = 640_000
    epochs: int = 500
    lr: float = 5e-4
    prompts: list[int] = field(default_factory=lambda: [1, 5, 10])
    lora: list[int] = field(default_factory=lambda: [1, 5, 10])
    adapter: list[int] = field(default_factory=lambda: [1, 5, 10])
    depths: list[int] | None = None
    generations: int = 15
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    mutation: float = 0.2
    deepening: float = 0.4


def parse(argv: Sequence[str]) -> tuple[Config, SearchConfig]:
    """Read `CONFIG [--search.key value ...] [--key value ...]`; keys without `search.` are those of tools/train.py.

    Raises:
        ConfigError: The first mistake.
        SystemExit: With 0, after `--help` has been printed.
    """
    if "-h" in argv or "--help" in argv:
        print(_help(), end="")
        raise SystemExit(0)
    files, pairs = split_words(argv)
    if len(files) != 1:
        given = f"got {' and '.join(files)}" if files else "give one, such as configs/vtab/noah.yaml"
        raise ConfigError(f"{COMMAND_LINE}: one config file is expected; {given}")
    tree = read_yaml(files[0])
    given = [(key, text) for key, text in pairs if not key.startswith("search.")]
    config = classifying(resolve(tree, files[0], given), files[0])
    chosen = _section(tree, files[0])
    if config.data.root is None or (config.data.task in EMBEDDED and config.data.format in ("auto", "embedded")):
        chosen |= _section(tree.get("embedded") or {}, files[0])
    for key, text in pairs:
        if key.startswith("search."):
            chosen |= _checked(key.removeprefix("search."), _plain(key, text), COMMAND_LINE)
    search = SearchConfig(**chosen)
    _check_ranges(search)
    return config, search


def _section(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    section = tree.get("search") or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: search holds several settings, not the single value {quoted(section)}")
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _checked(str(key), value, source)
    return found


def _checked(key: str, value: Any, source: str) -> dict[str, Any]:
    hints = get_type_hints(SearchConfig)
    if key not in hints:
        raise ConfigError(f"{source}: there is no 'search.{key}'; {did_you_mean(key, hints, 'search.')}")
    fits = value is not None or type(None) in alternatives(hints[key])
    if fits:
        try:
            value = _parser().parse_object({"search": {key: value}}, defaults=False)["search"][key]
        except (argparse.ArgumentError, TypeError, ValueError):
            fits = False
    if not fits:
        raise ConfigError(f"{source}: search.{key} must be {words(hints[key])}, not {quoted(value)}")
    return {key: value}


def _plain(key: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: the value of --{key} is not valid YAML: {text}") from error


def _parser() -> jsonargparse.ArgumentParser:
    usage = f"{PROG} CONFIG [--search.key value ...] [--key value ...]"
    epilog = "All other keys are those of tools/train.py --help; they hold for the supernet and for its subnet."
    parser = jsonargparse.ArgumentParser(prog=PROG, usage=usage, epilog=epilog, exit_on_error=False)
    parser.add_class_arguments(SearchConfig, "search")
    return parser


def _check_ranges(search: SearchConfig) -> None:
    least = {"budget": 1, "epochs": 1, "generations": 1, "population": 1, "parents": 1, "mutations": 0, "crossovers": 0}
    for key, bound in least.items():
        if getattr(search, key) < bound:
            raise ConfigError(f"search.{key} must be at least {bound}, not {getattr(search, key)}")
    for key in ("mutation", "deepening"):
        if not 0 <= getattr(search, key) <= 1:
            raise ConfigError(f"search.{key} is a probability, between 0 and 1, not {getattr(search, key)}")
    if not search.lr > 0:
        raise ConfigError(f"search.lr must be above 0, not {search.lr}")
    if search.mutations + search.crossovers > search.population:
        raise ConfigError(
            f"search.mutations {search.mutations} and search.crossovers {search.crossovers} are more than the "
            f"search.population {search.population} that they are part of"
        )
    for key in KINDS:
        if min(getattr(search, key), default=0) < 1:
            raise ConfigError(f"search.{key} must name widths of at least 1, not {getattr(search, key)}")
    if search.depths is not None and min(search.depths, default=0) < 1:
        raise ConfigError(f"search.depths must name numbers of at least 1, not {search.depths}")


def _help() -> str:
    parser = _parser()
    for action in parser._actions:
        if action.dest == "search":  # a whole section is a form of jsonargparse that is not read here
            action.help = argparse.SUPPRESS
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
    return parser.format_help()
