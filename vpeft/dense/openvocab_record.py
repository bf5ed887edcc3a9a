"""What is written down about an open-vocabulary run: row, manifest of the weights, and the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as L
from rich import box
from rich.console import Console
from rich.table import Table

from vpeft.backbones.weights import content_hash
from vpeft.data.openvocab import OpenVocabData
from vpeft.dense.openvocab_schema import OpenVocabConfig
from vpeft.dense.san import SAN
from vpeft.record import device, memory
from vpeft.results.row import git_commit, now, versions
from vpeft.run_folder import RunFolder
from vpeft.tasks.openvocab import OpenVocab, normalization
from vpeft.tasks.timing import Timing
from vpeft.yaml_file import plain

PARTS = {"side": "side.", "positions": "clip.", "background": "text."}


def parameter_counts(san: SAN) -> dict[str, int]:
    """Trained parameters of the side network, of CLIP's position table and of the background row; frozen and total."""
    trained = san.trained()
    counts = {
        part: sum(one.numel() for name, one in trained.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    total = sum(parameter.numel() for parameter in san.parameters())
    return counts | {"frozen": total - sum(counts.values()), "total": total}


def describe(config: OpenVocabConfig, task: OpenVocab, data: OpenVocabData) -> str:
    """What is about to be done, in one line."""
    tests = ", ".join(f"{one.name} ({len(one.files):,} images)" for one in data.test_sets)
    counts = parameter_counts(task.san)
    trained = counts["total"] - counts["frozen"]
    if data.train_set is None:
        return f"SAN on {config.model.clip}, weights {config.model.weights}, evaluated on {tests}"
    return (
        f"SAN on {config.model.clip}, {config.train.steps:,} steps on {data.train_set.name}: "
        f"{len(data.train_set.table.names)} classes, {len(data.train_set.files):,} images; evaluated on {tests}; "
        f"{trained:,} of {counts['total']:,} parameters trained"
    )


def result_row(
    config: OpenVocabConfig,
    run: RunFolder,
    task: OpenVocab,
    data: OpenVocabData,
    timing: Timing,
    trainer: L.Trainer,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The row of a run that has been tested.

    Keys as in `vpeft.results.Row`, but for these: `steps` trained; `weights` {start, sha256}, the hash of SAN's
    weights before and after training, and the file they began with; `test` {data set: miou, macc, aacc, images,
    per_class {name: IoU}}; `parameters` side, positions, background, frozen, total.

    Args:
        hashes: Of CLIP, and of SAN's weights before training.
    """
    settings = {section: asdict(getattr(config, section)) for section in ("model", "data", "loss", "optim", "train")}
    del settings["train"]["resume"]  # says nothing about the run as a whole
    mean, std = normalization(task.san)
    row = {
        "id": run.id,
        "date": now(),
        "kind": config.kind,
        "task": config.task,
        "protocol": None,
        "method": [{"name": "san"} | settings["model"] | {"templates": list(task.san.text.templates)}],
        "backbone": {
            "name": config.model.clip,
            "pretrained": config.model.pretrained,
            "image_size": config.model.image_size,
            "sha256": hashes["clip"],
        },
        "weights": {
            "file": config.model.weights,
            "start": hashes["start"],
            "sha256": content_hash(task.san.delta()),
        },
        "preprocessing": {"normalization": {"mean": list(mean), "std": list(std)}},
        "data": settings["data"] | {"counts": _counts(data)},
        "loss": settings["loss"],
        "optim": settings["optim"],
        "train": settings["train"],
        "steps": trainer.global_step,
        "seed": config.seed,
        "test": _tested(task, data),
        "parameters": parameter_counts(task.san),
        "time": {"wall_seconds": timing.elapsed()} | timing.summary(),
        "memory": memory(trainer),
        "device": device(trainer),
        "versions": versions(),
        "git": git_commit(),
        "folder": str(run.path),
    }
    return plain(row)


def manifest(config: OpenVocabConfig, task: OpenVocab, data: OpenVocabData, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of weights says beside what `vpeft.dense.san_weights.save` knows."""
    assert task.train_table is not None, "weights are saved after training"
    return {
        "normalization": row["preprocessing"]["normalization"],
        "data": {
            "train": config.task,
            "classes": list(task.train_table.names),
            "short_side": config.data.short_side,
            "long_side": config.data.long_side,
        },
        "parameters": {part: row["parameters"][part] for part in PARTS},
        "result": {
            "id": row["id"],
            "steps": row["steps"],
            "test_miou": {name: found["miou"] for name, found in row["test"].items()},
        },
    }


def parameter_table(counts: Mapping[str, int]) -> str:
    """Parameters by part, in Markdown."""
    lines = ["| part | trained |", "|---|---:|", *(f"| {part} | {counts[part]:,} |" for part in PARTS)]
    return "\n".join([*lines, f"| frozen | {counts['frozen']:,} |"])


def print_summary(row: Mapping[str, Any], saved: Mapping[str, str], console: Console | None = None) -> None:
    """Show a finished run in the terminal: measures by data set, parameters, time, and where everything lies."""
    console = console or Console()
    table = Table("data set", box=box.SIMPLE_HEAD)
    for column in ("images", "mIoU", "mAcc", "aAcc"):
        table.add_column(column, justify="right")
    for name, found in row["test"].items():
        table.add_row(name, f"{found['images']:,}", *(f"{found[one]:.2%}" for one in ("miou", "macc", "aacc")))
    console.print()
    console.print(table)
    counts = row["parameters"]
    said = {
        "trained": ", ".join(f"{part} {counts[part]:,}" for part in PARTS) + f" of {counts['total']:,}",
        "time": f"{row['time']['wall_seconds']:.0f} s",
        "peak memory": f"{row['memory']['peak_bytes'] / 2**30:.2f} GiB ({row['memory']['of']})",
    }
    for what, value in {**said, **saved}.items():  # outside a table, which would break a path at its border
        console.print(f" [bold]{what:<14}[/bold] {value}", soft_wrap=True, highlight=False)


def _tested(task: OpenVocab, data: OpenVocabData) -> dict[str, Any]:
    found = {}
    for one in data.test_sets:
        scores = task.evaluation[one.name]
        found[one.name] = {
            **{name: getattr(scores, name) for name in ("miou", "macc", "aacc")},
            "images": len(one.files),
            "per_class": dict(zip(one.table.names, scores.iou, strict=True)),
        }
    return found


def _counts(data: OpenVocabData) -> dict[str, int]:
    train = {} if data.train_set is None else {"train": len(data.train_set.files)}
    return train | {one.name: len(one.files) for one in data.test_sets}
