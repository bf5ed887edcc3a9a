"""The tables of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vpeft.config import Config
from vpeft.data.tables import VTAB
from vpeft.scaling.simulation import BATCH, SIZES, member, simulate
from vpeft.scaling.work import Device, count

EVALUATED = 256  # images in a batch of evaluation


def decoding_table(decode: Callable[[str], float]) -> str:
    """Markdown: what decoding the images of each task costs one core."""
    lines = ["| task | size | images | ms an image, one core | core seconds |", "|---|---|---:|---:|---:|"]
    total = images = 0.0
    for task in VTAB:
        number, seconds = 1000 + VTAB[task].test, decode(task)
        total, images = total + number * seconds, images + number
        size = " x ".join(map(str, SIZES[task]))
        lines.append(f"| {task} | {size} | {number:,} | {1000 * seconds:.2f} | {number * seconds:.0f} |")
    return "\n".join([*lines, f"| all | | {images:,.0f} | {1000 * total / images:.2f} | {total:.0f} |"])


def cost_table(
    configs: Sequence[Config],
    device: Device,
    packs: Sequence[int],
    jobs: Sequence[int],
    cores: int,
    decode: Callable[[str], float],
    host: float,
) -> str:
    """Markdown: a step, an evaluated image and the whole suite for each method."""
    lines = [
        "| method | packed | step: images | TFLOP | operations | host, ms | device, ms | of that products, ms "
        "| test: images/s "
        "| " + " | ".join(f"suite, {job} at a time (device busy)" for job in jobs) + " |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * len(jobs),
    ]
    for config in configs:
        assert isinstance(config.method, dict)
        tested = count(config.method, config.backbone, EVALUATED, False).seconds(device) / EVALUATED
        for pack in packs:
            step = count(config.method, config.backbone, BATCH * pack, True)
            work = {"step": step.seconds(device), "image": tested, "host": host}
            members = [member(task, work, decode(task), pack) for task in VTAB]
            found = [simulate(members, job, cores) for job in jobs]
            lines.append(
                f"| {config.method['name']} | {pack} | {BATCH * pack} | {step.flops / 1e12:.1f} "
                f"| {len(step.operations)} | {1000 * step.issued(device):.1f} | {1000 * step.computed(device):.1f} "
                f"| {1000 * step.products.computed(device):.1f} "
                f"| {1 / tested:,.0f} | "
                + " | ".join(f"{seconds / 60:.1f} min ({busy:.0%})" for seconds, busy in found)
                + " |"
            )
    return "\n".join(lines)
