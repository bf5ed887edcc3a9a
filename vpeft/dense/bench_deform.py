"""Our sampling of deformable attention against transformers' pure-PyTorch one, at the sizes of ViT-Adapter.

They take turns (`vpeft.bench.turns`) and medians of ratios are compared. Memory is the sum of what torch allocates and
frees at its highest: a process' own peak would be that of the imports and of the compiler.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vpeft.bench.process import held, wait
from vpeft.bench.record import described, dumped
from vpeft.bench.turns import ratios, turns
from vpeft.dense.deform_attn import Size, sample

KINDS = ("theirs", "ours", "ours compiled")


@dataclass(frozen=True)
class Setting:
    """What is measured; sizes are those of ViT-Adapter-B.

    Args:
        batch: Images.
        side: Of them, in pixels.
        heads: Of the attention.
        dim: Channels a head.
        points: A head and level.
        rounds: Turns of each after one that is not counted.
        threads: CPU threads of torch.
        device: cpu or cuda.
    """

    batch: int = 2
    side: int = 512
    heads: int = 12
    dim: int = 32
    points: int = 4
    rounds: int = 15
    threads: int = 2
    device: str = "cpu"

    def sizes(self, case: str) -> tuple[list[Size], list[Size]]:
        """Of the maps that ask, and of those that are read."""
        maps = [(self.side // stride, self.side // stride) for stride in (8, 16, 32)]
        return (maps, maps[1:2]) if case == "extractor" else (maps[1:2], maps)


CASES = ("injector", "extractor")


@dataclass(frozen=True)
class Measured:
    """Seconds of every round, forward and backward, and bytes of peak memory beyond the inputs."""

    seconds: list[float]
    memory: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Step:
    """One forward and backward pass of one kind at the sizes of one case."""

    def __init__(self, setting: Setting, case: str, kind: str) -> None:
        generator = torch.Generator().manual_seed(0)
        asking, self.sizes = setting.sizes(case)
        queries, cells = (sum(h * w for h, w in sizes) for sizes in (asking, self.sizes))
        shape = (setting.batch, queries, setting.heads, len(self.sizes), setting.points)
        device = torch.device(setting.device)
        self.value = torch.randn(setting.batch, cells, setting.heads, setting.dim, generator=generator).to(device)
        self.at = (torch.rand(*shape, 2, generator=generator) * 1.1 - 0.05).to(device)
        self.weights = (
            torch.rand(*shape[:3], shape[3] * shape[4], generator=generator).softmax(-1).view(shape).to(device)
        )
        self.cotangent = torch.randn(setting.batch, queries, setting.heads * setting.dim, generator=generator).to(
            device
        )
        self.run = _kind(kind)
        self.device = device

    def __call__(self) -> float:
        """Run it and return its wall time in seconds."""
        inputs = [t.requires_grad_() for t in (self.value, self.at, self.weights)]
        wait(self.device)
        start = time.perf_counter()
        out = self.run(self.value, self.sizes, self.at, self.weights)
        torch.autograd.grad(out, inputs, self.cotangent)
        wait(self.device)
        return time.perf_counter() - start


def _kind(kind: str) -> Callable[..., Tensor]:
    if kind == "theirs":
        from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

        return _Theirs(MultiScaleDeformableAttention())
    return torch.compile(sample, fullgraph=True) if kind == "ours compiled" else sample


@dataclass
class _Theirs:
    module: Any

    def __call__(self, value: Tensor, sizes: Sequence[Size], at: Tensor, weights: Tensor) -> Tensor:
        return self.module(value, None, sizes, None, at, weights, 64)


def bench(
    setting: Setting, kinds: Sequence[str] = KINDS, say: Callable[[str], None] = print
) -> dict[str, dict[str, Measured]]:
    """Measure every kind in every case; `theirs` is what the others are compared with."""
    torch.set_num_threads(setting.threads)
    found: dict[str, dict[str, Measured]] = {}
    for case in CASES:
        steps = {kind: Step(setting, case, kind) for kind in kinds}
        for step in steps.values():
            step()
        rounds = list(turns(steps, setting.rounds))
        seconds = {kind: [one[kind] for one in rounds] for kind in kinds}
        found[case] = {kind: Measured(seconds[kind], footprint(steps[kind])) for kind in kinds}
        say(f"{case} done")
    return found


def footprint(step: Step) -> int:
    """Bytes that a step, which has run before, holds at its highest beyond what there is before it."""
    return held(step, step.device)


def table(found: dict[str, dict[str, Measured]]) -> str:
    """Markdown: every kind against theirs."""
    lines = [
        "| case | sampling | forward and backward, ms | time / theirs | peak memory, MiB | memory / theirs |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case, measured in found.items():
        theirs = measured["theirs"]
        for kind, m in measured.items():
            ratio = ratios(m.seconds, theirs.seconds).median
            lines.append(
                f"| {case} | {kind} | {m.median * 1000:.1f} | {ratio:.2f} "
                f"| {m.memory / 2**20:.0f} | {m.memory / theirs.memory:.2f} |"
            )
    return "\n".join(lines)


def to_json(setting: Setting, found: dict[str, dict[str, Measured]]) -> str:
    """Everything that was measured, and on what."""
    cases = {case: {kind: asdict(m) for kind, m in measured.items()} for case, measured in found.items()}
    return dumped(described(setting) | {"cases": cases})
