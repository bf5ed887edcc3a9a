"""What is written down about a multimodal run: its result row, and what stands in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as L
from rich import box
from rich.console import Console
from rich.table import Table

from mllm.blip2.schema import Blip2Config
from mllm.job import Job, Measures
from mllm.schema import MLLMConfig
from vpeft.record import device, memory
from vpeft.results.row import git_commit, now, versions
from vpeft.run_folder import RunFolder
from vpeft.tasks.timing import Timing
from vpeft.yaml_file import plain


def describe(config: MLLMConfig | Blip2Config, data: Any, trainer: L.Trainer) -> str:
    """What is about to be trained, in one line."""
    counts = data.provenance["counts"]
    names = [config.connector["name"]]
    if isinstance(config, MLLMConfig):
        names.append(f"{config.language_method['name']} {config.language.name}")
    return (
        f"{' and '.join(names)} on {config.vision.backbone}, {config.data.task}: {counts['train']:,} samples to train "
        f"on, {counts['test']:,} for the test, {trainer.max_steps:,} steps"
    )


def result_row(
    config: MLLMConfig | Blip2Config,
    run: RunFolder,
    job: Job,
    timing: Timing,
    trainer: L.Trainer,
    val: Measures | None,
    components: Mapping[str, int],
    totals: Mapping[str, int],
) -> dict[str, Any]:
    """The row of a run that has been tested.

    Keys as in `vpeft.results.Row`, but for these: `steps` trained; `connector`, `language`, `language_method` and
    `start` as configured, with the hashes of all weights; `parameters` {component: trained} with frozen and total;
    `test` the measures and `card`, which says how they were made (`mllm.card`), or {} where there are no test samples.

    Args:
        config: Of the run.
        run: Its folder.
        job: What was trained; its task has been tested if there is anything to test it on.
        timing: Of the run.
        trainer: That ran it.
        val: The last evaluation on validation samples, or None.
        components: Trained parameters of each component.
        totals: All parameters of each.

    Raises:
        FloatingPointError: The test loss is not a finite number.
    """
    test: Measures | None = job.task.evaluation
    if test and not math.isfinite(test.loss):
        raise FloatingPointError(
            f"The test loss is {test.loss}, not a finite number, so {run.path} gets no result row and no adapter. Try "
            "a lower optim.lr, or --train.precision 32-true."
        )
    train = asdict(config.train)
    del train["resume"]  # says nothing about the run as a whole
    trained = sum(components.values())
    row = {
        "id": run.id,
        "date": now(),
        "kind": config.kind,
        "task": config.data.task,
        "protocol": None,
        "method": config.method if isinstance(config.method, list) else [config.method],
        "connector": config.connector,
        **job.said(),
        "preprocessing": job.data.preparation,
        "data": asdict(config.data) | job.data.provenance,
        "optim": asdict(config.optim),
        "train": train,
        "steps": trainer.global_step,
        "seed": config.seed,
        "test": test.values | {"loss": test.loss} if test else {},
        "val": val.values | {"loss": val.loss} if val else None,
        "parameters": {**components, "frozen": sum(totals.values()) - trained, "total": sum(totals.values())},
        "time": {"wall_seconds": timing.elapsed()} | timing.summary(),
        "memory": memory(trainer),
        "device": device(trainer),
        "versions": versions(),
        "git": git_commit(),
        "folder": str(run.path),
    }
    return plain(row)


def print_components(components: Mapping[str, int], totals: Mapping[str, int], console: Console | None = None) -> None:
    """What is trained where."""
    table = Table("component", box=box.SIMPLE_HEAD, title="parameters", title_justify="left", title_style="bold")
    for column in ("trained", "total", "share trained"):
        table.add_column(column, justify="right")
    for name, total in totals.items():
        table.add_row(name, *_shares(components[name], total))
    table.add_section()
    table.add_row("all", *_shares(sum(components.values()), sum(totals.values())), style="bold")
    (console or Console()).print(table)


def _shares(trained: int, total: int) -> tuple[str, str, str]:
    return f"{trained:,}", f"{total:,}", f"{trained / total:.2%}" if total else "-"


def print_summary(row: Mapping[str, Any], saved: Mapping[str, str], console: Console | None = None) -> None:
    """Show a finished run in the terminal: measures, time, memory, and where everything lies."""
    console = console or Console()
    console.print()
    said = {f"test {name.replace('_', ' ')}": _number(value) for name, value in row["test"].items() if _shown(value)}
    said["time"] = f"{row['time']['wall_seconds']:.0f} s, {row['steps']:,} steps"
    said["peak memory"] = f"{row['memory']['peak_bytes'] / 2**30:.2f} GiB ({row['memory']['of']})"
    for what, value in {**said, **saved}.items():  # outside a table, which would break a path at its border
        console.print(f" [bold]{what:<24}[/bold] {value}", soft_wrap=True, highlight=False)


def _shown(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
