"""NOAH's search: a supernet trained once, then the best subnet under a budget, measured on val200 and never on test.

The settings are the `search:` section of a file for tools/train.py (`vpeft.search_settings`); the supernet takes
everything else from that file, and trains on train800. A search has a folder like a run's, and in it

    last.ckpt       the supernet
    search.json     the settings and every accuracy measured so far
    subnet.yaml     what was found, as a config for tools/train.py
    result.json     says that the search is finished
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from rich.progress import Progress

from vpeft import run, run_folder
from vpeft.config import Config, ConfigError, to_yaml
from vpeft.data import ClassificationData
from vpeft.evolution import Generation, Space, check_budget, evolve
from vpeft.fetch import write_atomic
from vpeft.holding import held
from vpeft.json_file import NUMBER, read_json
from vpeft.methods.noah import NOAH, Architecture
from vpeft.run_folder import RunFolder
from vpeft.search_settings import KINDS, PROG, SearchConfig
from vpeft.tasks import checkpoint_file
from vpeft.tasks.classification import Classification
from vpeft.tasks.timing import Timing, Waiting
from vpeft.yaml_file import load_yaml


def search_space(search: SearchConfig, blocks: int) -> Space:
    """The architectures of a backbone.

    Raises:
        ConfigError: A depth that this backbone does not have.
    """
    depths = search.depths or sorted({max(1, round(blocks * quarter / 4)) for quarter in (1, 2, 3, 4)})
    if not 1 <= min(depths) <= max(depths) <= blocks:
        raise ConfigError(f"search.depths must be among the {blocks} blocks of this backbone, not {depths}")
    widths = tuple(tuple(sorted(set(getattr(search, kind)))) for kind in KINDS)
    return Space(widths, tuple(sorted(set(depths))), blocks)


def search(config: Config, settings: SearchConfig) -> Path:
    """Train the supernet, evolve, and write the subnet's config.

    Args:
        config: What the subnet is to be trained with; its method is NOAH.
        settings: Of the search.

    Returns:
        The subnet's config.

    Raises:
        ValueError: A setting, the data, the backbone or the budget does not fit; nothing has been written.
        SystemExit: A signal stopped the training of the supernet; it can be resumed, as can an interrupted evolution.
    """
    supernet = run.complete(_supernet(config, settings))
    folder = run_folder.find(supernet) if config.train.resume else None
    if folder:
        _same_search(folder, settings)
    if folder and folder.result:
        print(f"{folder.path} is finished already: {folder.path / 'subnet.yaml'}")
        return folder.path / "subnet.yaml"
    timing = Timing(Waiting())
    job = run.assemble(supernet)
    task, data = job.task, job.data
    if not data.splits["val"].files:
        raise ConfigError("A search measures subnets on val200, and this data has none.")
    (noah,) = task.tuned.methods
    assert isinstance(noah, NOAH)
    space = search_space(settings, len(task.tuned.backbone.blocks))
    check_budget(space, settings, noah.size)
    resumed = folder is not None
    folder = folder or run.new_run(supernet)
    with held(folder):
        measured = Measured(folder.path / "search.json", settings)
        print(
            f"{folder.path}: supernet of {noah.size(noah.widest):,} parameters, budget {settings.budget:,}", flush=True
        )
        trainer = run.build_trainer(supernet, folder, timing, [Sampling(space, supernet.seed)])
        checkpoint = checkpoint_file.find(folder.checkpoint) if resumed else None
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        best, accuracy = _evolve(space, settings, supernet.seed, Fitness(task, data, trainer), measured)
        file = folder.path / "subnet.yaml"
        write_atomic(file, _subnet(config, best, accuracy, noah.size(best), folder).encode())
        result = {"architecture": dataclasses.asdict(best), "val_accuracy": accuracy, "parameters": noah.size(best)}
        write_atomic(folder.path / "result.json", (json.dumps(result, indent=2) + "\n").encode())
        print(f"best subnet: val {accuracy:.1%}, {noah.size(best):,} parameters\n  python tools/train.py {file}")
        return file


def _supernet(config: Config, settings: SearchConfig) -> Config:
    method = config.method[0] if isinstance(config.method, list) and len(config.method) == 1 else config.method
    if isinstance(method, list) or method["name"] != "noah":
        names = [method["name"]] if isinstance(method, dict) else [str(one["name"]) for one in method]
        raise ConfigError(f"A search is for method noah alone, not {' and '.join(names)}.")
    if config.train.devices != 1 or config.train.nodes != 1:
        raise ConfigError("A search runs in one process: give train.devices 1 and train.nodes 1.")
    if config.optim.warmup_epochs >= settings.epochs:
        raise ConfigError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs:g} and search.epochs is {settings.epochs}: the "
            "learning rate of the supernet would never reach its peak."
        )
    widest = {kind: max(getattr(settings, kind)) for kind in KINDS}
    return dataclasses.replace(
        config,
        method={**method, **widest},
        data=dataclasses.replace(config.data, split="train800"),
        optim=dataclasses.replace(config.optim, lr=settings.lr),
        train=dataclasses.replace(
            config.train, epochs=settings.epochs, selection="last", ema=None, compile=False, resume=False
        ),
        name=f"{config.name or run_folder.default_name(config)}-search",
    )


def _same_search(folder: RunFolder, settings: SearchConfig) -> None:
    file = folder.path / "search.json"
    if not file.exists():
        return
    before, now = _read(file)["settings"], dataclasses.asdict(settings)
    told = [f"search.{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
    if told:
        raise ConfigError(
            f"{folder.path} cannot be resumed under other settings: {', '.join(told[:3])}. Give it the settings in "
            f"{file}, or start a new search without train.resume."
        )


def _read(file: Path) -> dict[str, Any]:
    row = {kind: [int] for kind in KINDS} | {"accuracy": NUMBER}
    advice = "put back a copy of it, or delete it, and all subnets are measured again"
    return read_json(file, {"settings": dict, "measured": [row]}, advice)


class Sampling(L.Callback):
    """A random subnet at every step of training, and the whole supernet in evaluation.

    Args:
        space: What is drawn from.
        seed: Of the draws, with epoch and batch: a resumed run draws what it would have drawn.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        drawn = self.space.draw(random.Random(f"{self.seed} {trainer.current_epoch} {batch_idx}"))
        self._noah(pl_module).sample(drawn)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._noah(pl_module).sample()

    def _noah(self, task: Any) -> NOAH:
        return task.tuned.methods[0]


class Fitness:
    """Accuracy of an architecture on val200, with the supernet's weights."""

    def __init__(self, task: Classification, data: ClassificationData, trainer: L.Trainer) -> None:
        device, self.precision = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        self.task, self.noah = task.to(device).eval(), task.tuned.methods[0]
        loader: Any = data.val_dataloader()
        self.batches = [(batch["image"].to(device), batch["label"].to(device)) for batch in loader]

    @torch.no_grad()
    def __call__(self, architecture: Architecture) -> float:
        self.noah.sample(architecture)  # pyright: ignore[reportCallIssue]
        with self.precision():
            right = [(self.task(images).argmax(dim=1) == labels) for images, labels in self.batches]
        return float(torch.cat(right).double().mean())


class Measured:
    """Accuracies by architecture, in a file that is whole after every one of them."""

    def __init__(self, file: Path, settings: SearchConfig) -> None:
        self.file, self.settings = file, dataclasses.asdict(settings)
        rows = _read(file)["measured"] if file.exists() else []
        self.known = {Architecture(*(tuple(row[kind]) for kind in KINDS)): row["accuracy"] for row in rows}
        self._save()

    def add(self, architecture: Architecture, accuracy: float) -> None:
        self.known[architecture] = accuracy
        self._save()

    def _save(self) -> None:
        rows = [dataclasses.asdict(one) | {"accuracy": accuracy} for one, accuracy in self.known.items()]
        write_atomic(self.file, json.dumps({"settings": self.settings, "measured": rows}).encode())


def _evolve(
    space: Space, settings: SearchConfig, seed: int, fitness: Fitness, measured: Measured
) -> tuple[Architecture, float]:
    started, noah = time.perf_counter(), fitness.noah
    assert isinstance(noah, NOAH)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("evolution", total=settings.generations * settings.population)

        def remembered(one: Architecture) -> float:
            if one not in measured.known:
                measured.add(one, fitness(one))
            progress.advance(bar)
            return measured.known[one]

        def told(generation: Generation) -> None:
            progress.console.print(
                f"generation {generation.number}/{settings.generations}  {generation.measured} subnets  "
                f"best val {generation.accuracy:.1%} with {noah.size(generation.best):,} parameters  "
                f"{time.perf_counter() - started:.0f} s",
                highlight=False,
            )

        try:
            return evolve(space, settings, seed, noah.size, remembered, told)
        except KeyboardInterrupt:
            print(
                f"Stopped after {len(measured.known)} subnets. All is in {measured.file.parent}; the same command with "
                "--train.resume true goes on from there.",
                file=sys.stderr,
            )
            raise


def _subnet(config: Config, best: Architecture, accuracy: float, parameters: int, folder: RunFolder) -> str:
    """The config that trains an architecture from the start, as a file."""
    method = config.method[0] if isinstance(config.method, list) else config.method
    widths = {kind: list(getattr(best, kind)) for kind in KINDS}
    train = dataclasses.replace(config.train, resume=False)
    text = to_yaml(dataclasses.replace(config, method={**method, **widths}, train=train))
    plain = yaml.safe_dump(load_yaml(text), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return (
        "# A subnet of NOAH (Zhang et al., arXiv:2206.04673): the width of each module in each block, 0 for none.\n"
        f"# Found by {PROG} on {config.data.task}: {parameters:,} parameters; {accuracy:.1%} on val200 with the\n"
        f"# weights of the supernet in {folder.path}. It is trained from the start:\n#\n"
        f"#     python tools/train.py {folder.path / 'subnet.yaml'}\n{plain}"
    )
