"""Test a multimodal adapter on a part of data, prepared as the adapter says, and write a result row."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mllm.assistant import Assistant
from mllm.data.module import MultimodalData
from mllm.data.shelf import Shelf
from mllm.data_schema import SETS
from mllm.evaluation import Answers, answer_all, choose, serve
from mllm.schema import EvaluationConfig, MLLMConfig
from mllm.sequence import IGNORED
from mllm.templates import restored
from vpeft.config import resolve
from vpeft.nearest import did_you_mean
from vpeft.results import append_row
from vpeft.results.row import git_commit, now, versions
from vpeft.schema import ConfigError
from vpeft.yaml_file import plain

# What may differ from the training: which data it is, how it is asked for, and how fast it is read.
FREE = (
    *("task", "root", "files", "count", "template", "system", "question", "max_length"),
    *("eval_batch_size", "workers", "on_missing"),
)
# What an adapter knows of its data.
_SAVED = ("aspect", "interpolation", "template", "system", "question", "max_length")
_UNREAD = "-"


def open_data(assistant: Assistant, overrides: Sequence[tuple[str, str]], part: str) -> MultimodalData:
    """The data an adapter is tested on: its own task, unless the overrides say another.

    Args:
        assistant: The adapter.
        overrides: `data.` keys among FREE, and their values.
        part: The only one that is read.

    Raises:
        ConfigError: A key that cannot be changed, or a wrong value.
        ValueError: The data or the part is missing, or has a fault.
    """
    for key, _ in overrides:
        section, _, name = key.partition(".")
        if section != "data" or name.partition(".")[0] not in FREE:
            hint = did_you_mean(key.removeprefix("data."), FREE, "data.")
            raise ConfigError(f"command line: --{key} cannot be changed for a test; {hint}")
    manifest, model = assistant.manifest, assistant.model
    saved = {name: manifest["preparation"][name] for name in _SAVED if name in manifest["preparation"]}
    task = dict(overrides).get("data.task", manifest["task"])
    # The schema asks for files to train on, and none is read here.
    files = {} if task in SETS else {"train": [_UNREAD]}
    tree = {"kind": "mllm", "data": {"task": task, "files": files} | saved}
    config = resolve(tree, str(assistant.path), overrides)
    assert isinstance(config, MLLMConfig)
    if config.data.files.train == [_UNREAD]:
        config.data.files.train = []
    named = vars(config.data.files)
    if task not in SETS and part in named and not named[part]:
        raise ConfigError(
            f"command line: {task} is read from files; give --data.root DIR and --data.files.{part} '[NAME]'"
        )
    backbone, writing, template = model.vision.backbone, assistant.writing, None
    if "data.template" not in dict(overrides):  # a file of one's own need not be here any more
        template = restored(manifest["preparation"], assistant.path, config.data.system)
    found = MultimodalData(
        config.data,
        writing.tokenizer,
        writing.tokens_per_image,
        backbone.image_size,
        backbone.interpolation,  # type: ignore[arg-type]
        tuple(backbone.normalization[0]),
        manifest["seed"],
        instruction_tokenizer=writing.instruction_tokenizer,
        parts=[part],
        template=template,
    )
    if part not in found.provenance["counts"]:
        raise ConfigError(f"command line: {task} has no part '{part}'; every set has test, and as a rule val")
    return found


def evaluate(
    assistant: Assistant, data: MultimodalData, part: str, settings: EvaluationConfig
) -> tuple[dict[str, Any], Answers | None]:
    """Measure an adapter on a part of its data.

    Returns:
        What stands under `test` in a row: the loss over the samples that are asked, and the values of the answers
        unless `score` is none.

    Raises:
        ValueError: As `mllm.evaluation.answer_all`.
    """
    measured: dict[str, Any] = {"part": part, "loss": _loss(assistant, data, choose(data, part, settings.samples))}
    if settings.score == "none":
        return measured, None
    found = answer_all(assistant.model, data, part, settings)
    return found.values() | measured, found


def result_row(
    assistant: Assistant, data: MultimodalData, settings: EvaluationConfig, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of an evaluation: as `mllm.record.result_row`, without what only a run has; `adapter` says of which file.

    Args:
        assistant: What was tested.
        data: On what.
        settings: How.
        measured: Of `evaluate`.
    """
    manifest = assistant.manifest
    kept = ("kind", "method", "backbone", "connector", "language", "language_method", "parameters", "seed")
    return plain(
        {
            "id": secrets.token_hex(8),
            "date": now(),
            "task": data.config.task,
            "protocol": None,
            **{key: manifest[key] for key in kept if key in manifest},
            "adapter": {
                "file": str(assistant.path),
                "sha256": manifest["sha256"],
                "run": manifest.get("result", {}).get("id"),
                "task": manifest["task"],
            },
            "preprocessing": data.preparation,
            "data": asdict(data.config) | data.provenance,
            "evaluation": vars(settings),
            "images_lost": data.skipped,
            "test": dict(measured),
            "device": str(assistant.device),
            "versions": versions(),
            "git": git_commit(),
        }
    )


def show(row: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what an evaluation found as a table, and how it was asked for."""
    test = row["test"]
    table = Table("measure")
    table.add_column("value", justify="right")
    for name, value in test.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console = console or Console()
    console.print(table)
    if card := test.get("card"):
        samples, decoding = card["samples"], card["decoding"]
        lost = f" ({samples['lost']:,} more were lost with their images)" if samples["lost"] else ""
        console.print(
            f"{samples['task']} {samples['part']}: {samples['count']:,} of {samples['of']:,} samples{lost}, template "
            f"{card['prompt']['template']}, {decoding['method']}, at most {decoding['max_new_tokens']} tokens; score: "
            f"{card['scoring']['says']}",
            markup=False,
        )


def write(row: Mapping[str, Any], output: Path) -> Path:
    """Append the row to `output`/results.jsonl.

    Raises:
        OSError: It could not be written.
    """
    path = output / "results.jsonl"
    append_row(path, row)
    return path


def _loss(assistant: Assistant, data: MultimodalData, samples: Shelf) -> float | None:
    """Mean over trained tokens; None where nothing is."""
    total, count = 0.0, 0
    for batch in track(serve(data, samples, prompts=False), description="loss", transient=True):
        batch = {name: tensor.to(assistant.device) for name, tensor in batch.items()}
        words = int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.no_grad():
            total += float(assistant.model.loss(batch)) * words
        count += words
    return total / count if count else None
