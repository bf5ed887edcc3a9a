"""From a request to the members of a suite and the items that processes take."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vpeft.config import COMMAND_LINE, Config, ConfigError, classifying, resolve
from vpeft.suite import sweep
from vpeft.suite.members import Member, member, text, with_values
from vpeft.suite.settings import Request
from vpeft.yaml_file import plain, read_yaml

# Numbers that members packed into one process may differ in, beside task and seed.
_APART = ("lr", "weight_decay", "head_lr", "head_weight_decay")


def build(request: Request) -> list[Member]:
    """The members of a request: tuning ones first, then final ones, seed by seed.

    Raises:
        ConfigError: A file, a setting or a swept value is wrong, for any task.
        ValueError: A task is not in the folder of the data.
    """
    labels = _labels(request.configs)
    _check_data(request)
    tuning: list[Member] = []
    finals: list[tuple[Config, str, dict[str, Any], list[str]]] = []
    for file, label in labels.items():
        tree = read_yaml(file)
        for task in request.tasks:
            base = _config(request, tree, file, task)
            grid = sweep.grid(request.swept, tree, file, base)
            tried = [_tuning(request, tree, file, label, base, point) for point in sweep.points(grid)] if grid else []
            tuning += tried
            finals.append((_final(request, base, grid, file), label, grid, [one.id for one in tried]))
    made = [
        member(dataclasses.replace(config, seed=seed), label, "final", grid=grid, needs=needs)
        for seed in request.seeds
        for config, label, grid, needs in finals
    ]
    _refuse_twins([*tuning, *made])
    return [*tuning, *made]


def items(members: Iterable[Member], pack: int) -> list[list[Member]]:
    """Groups of at most `pack` members that can be trained together; order is kept, tuning comes before final.

    Together go members of one phase that agree in everything but task, seed, and learning rates and decays, and whose
    method a pack takes (`vpeft.packed.packable`).
    """
    groups: dict[str, list[list[Member]]] = {}
    order: list[list[Member]] = []
    room: dict[str, int] = {}
    for one in members:
        key = _pack_key(one)
        if key not in room:
            room[key] = pack if pack > 1 and _packable(one) else 1
        known = groups.setdefault(key, [])
        if not known or len(known[-1]) >= room[key]:
            known.append([])
            order.append(known[-1])
        known[-1].append(one)
    return order


def to_yaml(request: Request, members: Sequence[Member]) -> str:
    """suite.yaml: what was asked for, every grid written out."""
    grids: dict[str, Any] = {}
    for one in members:
        if one.phase == "final":
            grids.setdefault(one.method, {}).setdefault(json.dumps(one.grid), []).append(one.task)
    methods = {
        label: {
            "config": file,
            "grids": [
                {"tasks": sorted(set(tasks)), "values": json.loads(grid)} for grid, tasks in grids[label].items()
            ],
        }
        for file, label in _labels(request.configs).items()
    }
    said = {
        "methods": methods,
        "tasks": request.tasks,
        "seeds": request.seeds,
        "root": request.root,
        "overrides": dict(request.overrides),
        "retries": request.retries,
        "pack": request.pack,
        "launcher": request.launcher,
    }
    return yaml.safe_dump(plain(said), sort_keys=False, allow_unicode=True)


def _labels(files: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for file in files:
        label = Path(file).stem
        if label in labels.values():
            raise ConfigError(
                f"{COMMAND_LINE}: two configs are called {label}.yaml, and methods are told apart by that"
            )
        labels[file] = label
    return labels


def _check_data(request: Request) -> None:
    if request.root is None:
        return
    from vpeft.config import DataConfig
    from vpeft.data.locate import locate

    for task in request.tasks:
        locate(DataConfig(task=task, root=request.root))


def _config(request: Request, tree: dict[str, Any], file: str, task: str) -> Config:
    """What a method is trained with on a task, before anything is chosen."""
    config = classifying(resolve(tree, file, _given(request, task)), file)
    from vpeft import run

    run.check(config)
    if request.launcher == "local" and (config.train.devices, config.train.nodes) != (1, 1):
        raise ConfigError(
            f"{file}: train.devices is {config.train.devices} and train.nodes {config.train.nodes}, and the local "
            "launcher gives each run one device; several runs at once are --jobs"
        )
    return config


def _given(request: Request, task: str) -> list[tuple[str, str]]:
    root = [("data.root", str(request.root))] if request.root else []
    return [("data.task", task), *root, *request.overrides]


def _tuning(
    request: Request, tree: dict[str, Any], file: str, label: str, base: Config, point: dict[str, Any]
) -> Member:
    measured = {"data.split": "train800", "train.test": False, "train.selection": "last"}
    measured |= {"train.val_every": base.train.epochs, "seed": request.seeds[0]}
    values = [(key, text(value)) for key, value in (measured | point).items()]
    config = classifying(resolve(tree, file, [*_given(request, base.data.task), *values]), file)
    return member(config, label, "tuning", point)


def _final(request: Request, base: Config, grid: dict[str, Any], file: str) -> Config:
    if not grid:
        return base
    if base.train.selection != "last":
        raise ConfigError(
            f"{file}: train.selection {base.train.selection} chooses an epoch on val200, which the final runs of a "
            "sweep train on; give --train.selection last"
        )
    return dataclasses.replace(base, data=dataclasses.replace(base.data, split="train800val200"))


def _refuse_twins(members: Sequence[Member]) -> None:
    seen: dict[str, Member] = {}
    for one in members:
        if one.id in seen:
            raise ConfigError(
                f"{COMMAND_LINE}: {seen[one.id].method} and {one.method} state the same runs, such as {one.title}; "
                "leave one of them out"
            )
        seen[one.id] = one


def _packable(one: Member) -> bool:
    from vpeft.packed import fit

    try:
        fit.check([with_values(one.settings, one.method, {})])
    except ConfigError:
        return False
    return True


def _pack_key(one: Member) -> str:
    settings: dict[str, Any] = {**one.settings, "phase": one.phase}
    if settings["pretrained"] != "none":  # else the seed makes the backbone
        settings["seed"] = None
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "task"}
    settings["optim"] = {key: value for key, value in settings["optim"].items() if key not in _APART}
    # Swept values that are not chosen yet may turn out as another structure.
    open_keys = [key for key in one.grid if key not in tuple(f"optim.{name}" for name in _APART)]
    settings["open"] = [one.task] if open_keys else None
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
