"""What is asked of Slurm: `--slurm.KEY VALUE` on a command line, or a small YAML file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError
from vpeft.setting import quoted
from vpeft.yaml_file import load_yaml, read_yaml

_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d+(:\d{1,2}){0,2}|infinite", re.IGNORECASE)
_AT_LEAST = {"cpus": 1, "nodes": 1, "tasks": 1, "limit": 1, "grace": 1, "retries": 0}


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm for every member of an array; None leaves it to the cluster.

    Args:
        partition: Its name.
        account: To charge.
        qos: Quality of service.
        time: Limit of one run, as sbatch takes it: minutes, `2:00:00`, `1-12`.
        mem: Memory a node, as `32G`.
        constraint: Features of the node.
        gpus: GPUs a node, a number or with their type, `a100:2`.
        cpus: CPUs a task.
        nodes: Of a member.
        tasks: Processes a node, one a GPU: train.devices.
        limit: Members that run at once.
        grace: Seconds before the time limit at which the run is told to save.
        retries: How often a member that failed queues itself again.
        stage: Copy the data to the node's own disk first.
        setup: Lines of shell before the command, such as `module load python`.
        extra: Further arguments of sbatch.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    constraint: str | None = None
    gpus: str | None = None
    cpus: int = 1
    nodes: int = 1
    tasks: int = 1
    limit: int | None = None
    grace: int = 120
    retries: int = 0
    stage: bool = False
    setup: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def arguments(self) -> list[str]:
        """As arguments of sbatch."""
        given = {name: getattr(self, name) for name in ("partition", "account", "qos", "time", "mem", "constraint")}
        words = [f"--{name}={value}" for name, value in given.items() if value is not None]
        words += [f"--gres=gpu:{self.gpus}"] * (self.gpus is not None)
        # The number of tasks a node in so many words: Lightning refuses to guess it from a total.
        words += [f"--nodes={self.nodes}", f"--ntasks-per-node={self.tasks}", f"--cpus-per-task={self.cpus}"]
        # To the batch process alone, which hands it on; the tasks would otherwise get it twice.
        return [*words, "--requeue", "--open-mode=append", f"--signal=B:USR1@{self.grace}", *self.extra]


def options(pairs: Iterable[tuple[str, str]], source: str = "command line") -> SlurmOptions:
    """Read options.

    Args:
        pairs: Keys without their prefix and values in YAML; `file` names a YAML file of options, which the others
            replace.
        source: Of the pairs, for errors.

    Raises:
        ConfigError: The first mistake.
    """
    given = dict(pairs)
    file = given.pop("file", None)
    found = _checked(read_yaml(file), file) if file is not None else {}
    asked = SlurmOptions(**(found | _checked({key: _read(key, text, source) for key, text in given.items()}, source)))
    if asked.time is not None and asked.grace >= (limit := _seconds(asked.time)):
        raise ConfigError(
            f"{source}: slurm.grace is {asked.grace} s and slurm.time {asked.time} is {limit:.0f} s: every run would "
            "be told to save as it starts, and would queue itself again for ever; give more time or less grace"
        )
    return asked


def _seconds(time: str) -> float:
    """Of a limit as sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours:minutes:seconds."""
    if time.lower() == "infinite":
        return math.inf
    days, with_days, rest = time.rpartition("-")
    numbers = [int(word) for word in rest.split(":")]
    if not with_days and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _read(key: str, text: str, source: str) -> Any:
    if _kind(key) == "str":
        return text  # YAML reads 2:00:00 as a number
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: the value of --slurm.{key} is not valid YAML: {text}") from error


def _kind(key: str) -> str | None:
    return next((str(item.type).removesuffix(" | None") for item in fields(SlurmOptions) if item.name == key), None)


def _checked(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        for sentence in _mistakes(key, value):
            raise ConfigError(f"{source}: {sentence}")
        if value is not None:
            kind = _kind(key)
            found[key] = str(value) if kind == "str" else _listed(value) if kind == "list[str]" else value
    return found


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _mistakes(key: str, value: Any) -> Iterator[str]:
    kind = _kind(key)
    if kind is None:
        yield f"there is no slurm.{key}; {did_you_mean(key, [item.name for item in fields(SlurmOptions)])}"
    elif value is None:
        return
    elif kind == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < _AT_LEAST[key]):
        yield f"slurm.{key} must be a whole number of at least {_AT_LEAST[key]}, not {quoted(value)}"
    elif kind == "bool" and not isinstance(value, bool):
        yield f"slurm.{key} must be true or false, not {quoted(value)}"
    elif kind == "list[str]" and not all(isinstance(word, str) for word in _listed(value)):
        yield f"slurm.{key} must be a list of texts, not {quoted(value)}"
    elif kind == "str" and (isinstance(value, bool | list | dict) or not str(value).strip() or "\n" in str(value)):
        yield f"slurm.{key} must be one text, not {quoted(value)}"
    elif key == "time" and isinstance(value, int):
        yield f"slurm.time must be in quotes in YAML, which reads 2:00:00 as the number {2 * 3600}; not {value}"
    elif key == "time" and not _TIME.fullmatch(str(value)):
        yield f"slurm.time must be minutes, hours:minutes:seconds or days-hours, not {quoted(value)}"
    elif key == "extra":
        for word in _listed(value):
            if not word.startswith("-") or re.match(r"--(array|wrap|output|error|parsable|wait)\b", word):
                yield f"slurm.extra holds arguments of sbatch that this does not set, as --reservation=x; not {word}"
