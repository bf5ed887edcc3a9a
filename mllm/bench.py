"""Step time and peak memory of a multimodal run beside transformers' Trainer with peft (`mllm.bench_cases`).

The losses of the first samples are compared before anything is timed. Machines drift, so all cases take turns round by
round: a round is one pass over the samples, from the first batch to the last optimiser step. Memory is the growth of a
fresh process that runs one case alone.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.bench_cases import CASES, PEFT, made
from mllm.bench_setting import Setting, prepare
from mllm.sample import Sample
from vpeft.bench.process import fresh
from vpeft.bench.record import described, dumped
from vpeft.bench.turns import ratios, turns
from vpeft.tasks.timing import forget_peak, peak_memory


@dataclass(frozen=True)
class Measured:
    """Of one case.

    Args:
        parameters: Trained.
        loss: Of the first samples, before training.
        steps: Of a round.
        samples: Of a round.
        tokens: Of these.
        positions: That the language model computed for them, padding too.
        seconds: Wall time of every round.
        memory: Bytes by which the peak of a round is above a process without models; None is not measured.
    """

    parameters: int
    loss: float
    steps: int
    samples: int
    tokens: int
    positions: int
    seconds: list[float]
    memory: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def bench(
    setting: Setting,
    samples: Iterable[Sample],
    cases: Iterable[str] = tuple(CASES),
    memory: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Measured]:
    """Measure every case.

    Args:
        setting: What is measured.
        samples: Questions, each about one image in memory.
        cases: Of CASES; what the others are compared with is always measured.
        memory: Measure that too, in a process each.
        say: Is told of the progress.

    Raises:
        AssertionError: The losses of the cases differ, so that they do not compute the same.
    """
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, setting, samples)
        names = [PEFT, *(case for case in cases if case != PEFT)]
        peaks = {case: footprint(setting, case, folder) if memory else None for case in names}
        running = {case: made(case, folder, setting) for case in names}
        losses = {case: one.first_loss() for case, one in running.items()}
        torch.testing.assert_close(torch.tensor([*losses.values()]), torch.full((len(losses),), losses[PEFT]))
        for one in running.values():
            one()
        seconds: dict[str, list[float]] = {case: [] for case in names}
        for turn, found in enumerate(turns(running, setting.rounds), start=1):
            for case, elapsed in found.items():
                seconds[case].append(elapsed)
            say(f"round {turn} of {setting.rounds} done")
        return {
            case: Measured(
                one.parameters,
                losses[case],
                one.steps,
                setting.samples,
                one.tokens,
                one.positions,
                seconds[case],
                peaks[case],
            )
            for case, one in running.items()
        }


def footprint(setting: Setting, case: str, folder: Path) -> int:
    """Bytes that a fresh process gains from before the models are built to the peak of a round of one case."""
    return fresh(_footprint, setting, case, folder)


def _footprint(setting: Setting, case: str, folder: Path) -> int:
    import peft  # noqa: F401  what importing costs is nobody's
    import transformers

    _ = transformers.LlavaForConditionalGeneration, transformers.Trainer
    torch.set_num_threads(setting.threads)
    device = torch.device("cpu")
    forget_peak()
    before = peak_memory(device)
    one = made(case, folder, setting)
    forget_peak()  # building makes copies
    one()
    return peak_memory(device) - before


def table(measured: Mapping[str, Measured]) -> str:
    """Markdown: every case beside transformers' Trainer."""
    lines = [
        "| case | steps a round | positions | padding | round, s | samples/s | tokens/s | time / Trainer | memory, MiB "
        "| memory / Trainer |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    theirs = measured[PEFT]
    for case, m in measured.items():
        ratio = ratios(m.seconds, theirs.seconds).median
        memory = ["-", "-"]
        if m.memory is not None and theirs.memory is not None:
            memory = [f"{m.memory / 2**20:,.0f}", f"{m.memory / theirs.memory:.2f}"]
        cells = [
            case,
            str(m.steps),
            f"{m.positions:,}",
            f"{1 - m.tokens / m.positions:.0%}",
            f"{m.median:.2f}",
            f"{m.samples / m.median:.2f}",
            f"{m.tokens / m.median:,.0f}",
            f"{ratio:.2f}",
            *memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_json(setting: Setting, measured: Mapping[str, Measured]) -> str:
    """Everything that was measured, with the machine and the versions it was measured under."""
    found: dict[str, Any] = {case: asdict(m) for case, m in measured.items()}
    return dumped(described(setting) | {"cases": found})
