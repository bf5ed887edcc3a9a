"""Time and memory of K runs packed into one process, against K processes one after another and K at once.

Every process is fresh and runs whole: imports, weights, images, training, validation, test, files. The three ways take
turns, so that what else the machine does meets all of them; ratios within a round are compared.

Memory of a process is the peak of its resident set. Processes at once share the pages of files (libraries), so those
count once in their sum.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vpeft import methods
from vpeft.bench.noise import CLASSES, config, write_images
from vpeft.bench.record import described, dumped
from vpeft.bench.turns import ratios
from vpeft.bench.turns import turns as take_turns
from vpeft.config import Config, resolve, to_yaml
from vpeft.heads import LinearHead
from vpeft.packed.joint import Generators, features
from vpeft.packed.sharing import own_adopted, twin
from vpeft.tasks.build import build_backbone
from vpeft.tuned import Tuned
from vpeft.yaml_file import read_yaml

WAYS = ("one after another", "at once", "packed")
_EPOCHS = 2  # the first starts up; step times are of the second


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        backbone: As in a configuration.
        pretrained: `none` is enough: weights have no influence on time.
        image_size: Side in pixels.
        method: Name, with the defaults of its options.
        members: K.
        batch: Images a step and a member.
        steps: Of an epoch and a member.
        rounds: Turns of every way.
        threads: Of each process.
    """

    backbone: str = "vit_small_patch14_saliency"
    pretrained: str = "none"
    image_size: int = 56
    method: str = "lora"
    members: int = 4
    batch: int = 16
    steps: int = 8
    rounds: int = 3
    threads: int = 1


@dataclass(frozen=True)
class Process:
    """What one process took: seconds of the clock and of CPUs, bytes at its peak and of mapped files, and the seconds
    of a step that its rows say."""

    seconds: float
    cpu: float
    peak: int
    files: int
    steps: list[float]


@dataclass(frozen=True)
class Measured:
    """Of one way in one round: all members together.

    Args:
        seconds: From the start of the first process to the end of the last.
        cpu: Of all processes.
        memory: The most held at a time.
        step: Seconds in which every member makes one step.
    """

    seconds: float
    cpu: float
    memory: int
    step: float


def bench(setting: Setting, say: Callable[[str], None] = print) -> list[dict[str, Measured]]:
    """Every way in every round."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", setting.batch * setting.steps)
        rounds = []
        for turn in range(setting.rounds):
            found = {way: _measure(way, setting, root / f"{turn}-{way}".replace(" ", "-"), root) for way in WAYS}
            rounds.append(found)
            say(f"round {turn + 1} of {setting.rounds}: " + "; ".join(f"{way} {m}" for way, m in found.items()))
    return rounds


@dataclass(frozen=True)
class Step:
    """Forward and backward of all members in one process: operations of the products, and seconds of every turn."""

    operations: dict[str, int]
    seconds: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        """Of the times packed and apart, the median over the turns."""
        return ratios(self.seconds["packed"], self.seconds["apart"]).median


def step(setting: Setting, turns: int = 5) -> Step:
    """The same models on the same images, each alone and as one, in turns after one that is not counted."""
    torch.set_num_threads(setting.threads)
    made = _config(setting, Path(), Path(), 0)
    backbone, models = build_backbone(made), []
    for _ in range(setting.members):
        body = twin(backbone)
        built = methods.build(made.method, body)
        models.append(Tuned(body, built, LinearHead(methods.feature_dim(body, built), CLASSES)).train())
        own_adopted(models[-1])
    images = [torch.randn(setting.batch, 3, *backbone.image_size) for _ in models]

    def apart() -> None:
        for model, x in zip(models, images, strict=True):
            model.backbone(x).sum().backward()

    def packed() -> None:
        generators = [Generators.now(torch.device("cpu")) for _ in models]
        features(models, images, generators).sum().backward()

    ways, operations = {"apart": apart, "packed": packed}, {}
    for name, run in ways.items():
        with FlopCounterMode(display=False) as counter:
            run()
        operations[name] = counter.get_total_flops()
    rounds = list(take_turns({name: partial(_timed, run) for name, run in ways.items()}, turns))
    seconds = {name: [one[name] for one in rounds] for name in ways}
    return Step(operations, seconds)


def _timed(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def table(rounds: Sequence[dict[str, Measured]]) -> str:
    """Markdown: medians over the rounds, and of the ratios to the first way within each round."""
    lines = [
        "| way | all, s | CPU, s | step of all, s | peak memory, MiB | CPU / first | step / first | memory / first |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        found = [(each[way], each[WAYS[0]]) for each in rounds]
        middle = {key: statistics.median(asdict(m)[key] for m, _ in found) for key in asdict(found[0][0])}
        cpu, step, memory = (
            ratios([asdict(m)[key] for m, _ in found], [asdict(first)[key] for _, first in found]).median
            for key in ("cpu", "step", "memory")
        )
        lines.append(
            f"| {way} | {middle['seconds']:.1f} | {middle['cpu']:.1f} | {middle['step']:.2f} "
            f"| {middle['memory'] / 2**20:,.0f} | {cpu:.2f} | {step:.2f} | {memory:.2f} |"
        )
    return "\n".join(lines)


def to_json(setting: Setting, rounds: Sequence[dict[str, Measured]], inside: Step) -> str:
    """Everything that was measured."""
    found = [{way: asdict(m) for way, m in each.items()} for each in rounds]
    return dumped(described(setting) | {"step": asdict(inside), "rounds": found})


def _measure(way: str, setting: Setting, output: Path, root: Path) -> Measured:
    files = []
    output.mkdir()
    for number in range(setting.members):
        files.append(output / f"{number}.yaml")
        files[-1].write_text(to_yaml(_config(setting, root / "images", output, number)))
    begun = time.perf_counter()
    if way == "packed":
        done = [_wait(*_start(files, setting.threads))]
    elif way == "at once":
        done = [_wait(*one) for one in [_start([file], setting.threads) for file in files]]
    else:
        done = [_wait(*_start([file], setting.threads)) for file in files]
    seconds, cpu = time.perf_counter() - begun, sum(one.cpu for one in done)
    if way == "one after another":
        memory, step = max(one.peak for one in done), sum(one.steps[0] for one in done)
    else:  # a pack's own step times, and those of processes at once, are of all members
        memory = sum(one.peak for one in done) - sum(one.files for one in done[1:])
        step = max(seconds for one in done for seconds in one.steps)
    return Measured(seconds, cpu, memory, step)


def _start(files: Sequence[Path], threads: int) -> tuple[subprocess.Popen[str], float]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "vpeft.packed.bench", *map(str, files)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment), time.perf_counter()


def _wait(process: subprocess.Popen[str], begun: float) -> Process:
    assert process.stdout is not None
    said = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"A run ended with {process.returncode}; what it said ends: {' '.join(said[-3:])}")
    files, steps = json.loads(said[-1])
    return Process(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, files, steps)


def _config(setting: Setting, images: Path, output: Path, number: int) -> Config:
    return config(
        images,
        output,
        f"run{number}",
        setting.batch,
        _EPOCHS,
        method={"name": setting.method},
        backbone=setting.backbone,
        pretrained=setting.pretrained,
        image_size=setting.image_size,
        lr=1e-3 * (1 + number),
    )


def _run(files: Sequence[str]) -> tuple[int, list[float]]:
    """Bytes of mapped files at the end, and seconds of a step by member."""
    from vpeft.packed import train_together
    from vpeft.run import train

    configs: list[Any] = [resolve(read_yaml(file), file) for file in files]
    rows: list[Any] = train_together(configs) if len(configs) > 1 else [train(configs[0])]
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024, [row["time"]["step_seconds"] for row in rows]


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1:])))
