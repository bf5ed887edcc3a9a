"""A training run, a suite and a search, small ones on coloured noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.faults import forked
from tests.faults.strikes import Strike
from tests.faults.victims import Kind, Outcome, Victim, adapters, difference, rows_of, tool
from tests.runs import DROPOUT, tiny_config, write_images
from tools import search as search_command
from tools import suite as suite_command
from tools import train as train_command
from vpeft.config import Config, to_yaml
from vpeft.suite import local


def _setup_images(shared: Path) -> None:
    write_images(shared / "images" / "colors")


def _train_config(shared: Path, output: Path) -> Config:
    """Everything with a state: dropout, an average, a best epoch, summed gradients, drop-path, a head with buffers."""
    config = tiny_config(shared / "images" / "colors", output, DROPOUT, epochs=4, ema=0.8, accumulate=2, resume=True)
    config.train.selection, config.drop_path, config.head.batch_norm, config.data.augment = (
        "best_val",
        0.2,
        True,
        "flip",
    )
    return config


def _train(victim: Victim) -> None:
    file = victim.shared / f"{victim.folder.name}.yaml"
    file.write_text(to_yaml(_train_config(victim.shared, victim.folder)))
    tool(train_command.main, file)


def _check_train(victim: Victim, reference: Victim) -> Outcome:
    mine, theirs = (one.folder / "run" for one in (victim, reference))
    far, wrong = adapters(mine / "adapter.safetensors", theirs / "adapter.safetensors")
    rows, expected = (rows_of(one.folder / "results.jsonl") for one in (victim, reference))
    wrong += _same_rows(rows, expected)
    if [row["id"] for row in rows] != [json.loads((mine / "run.json").read_text())["id"]]:
        wrong.append(f"{mine}: not one row of its id")
    if rows and json.loads((mine / "result.json").read_text()) != rows[0]:
        wrong.append(f"{mine}: result.json is not the row")
    return Outcome(len(rows), far, [], wrong)


def _same_rows(rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = ("test", "val", "selection", "epochs", "parameters", "tuning")
    told, due = ([[row.get(part) for part in parts] for row in some] for some in (rows, expected))
    return [] if sorted(map(repr, told)) == sorted(map(repr, due)) else [f"rows {told} in place of {due}"]


METHOD = """
method: {name: lora, rank: 2}
backbone: test_vit.r160_in1k
pretrained: none
image_size: 32
data: {format: folder, batch_size: 8, eval_batch_size: 7}
optim: {lr: 0.02, warmup_epochs: 0.5}
train: {epochs: 2, accelerator: cpu}
"""


def _setup_suite(shared: Path) -> None:
    _setup_images(shared)
    (shared / "lora.yaml").write_text(METHOD)


def _suite(victim: Victim) -> None:
    local.subprocess = forked  # pyright: ignore[reportAttributeAccessIssue]
    words = [victim.shared / "lora.yaml", "--root", victim.shared / "images" / "colors", "--tasks", "colors"]
    words += ["--seeds", "2", "--sweep", "lr=0.02,0.01", "--output", victim.folder, "--jobs", 1 + victim.number % 2]
    tool(suite_command.main, *words)


def _check_suite(victim: Victim, reference: Victim) -> Outcome:
    rows, wrong, far = [], [], [0.0]
    for part in ("", "tuning"):
        found, expected = (rows_of(one.folder / part / "results.jsonl") for one in (victim, reference))
        rows, wrong = rows + found, wrong + _same_rows(found, expected)
        due = {row["suite"]["member"] for row in expected}
        if sorted(row["suite"]["member"] for row in found) != sorted(due):
            wrong.append(f"{victim.folder / part}: not one row of every member")
    for theirs in sorted(reference.folder.glob("*/adapter.safetensors")):
        distance, other = adapters(victim.folder / theirs.relative_to(reference.folder), theirs)
        far, wrong = [*far, distance], wrong + other
    choices = [json.loads((one.folder / "choices.json").read_text()) for one in (victim, reference)]
    if choices[0] != choices[1]:
        wrong.append(f"{victim.folder}/choices.json differs")
    return Outcome(len(rows), max(far), [], wrong)


SECTION = """
search: {budget: 6000, epochs: 2, lr: 0.01, prompts: [1, 3], lora: [1, 2], adapter: [1, 4],
         generations: 3, population: 6, parents: 2, mutations: 2, crossovers: 2}
"""


def _search(victim: Victim) -> None:
    method = {"name": "noah", "prompts": 3, "lora": 2, "adapter": 4}
    config = tiny_config(victim.shared / "images" / "colors", victim.folder, method, epochs=2, resume=True)
    file = victim.shared / f"{victim.folder.name}.yaml"
    file.write_text(to_yaml(config) + SECTION)
    tool(search_command.main, file)


def _check_search(victim: Victim, reference: Victim) -> Outcome:
    mine, theirs = (one.folder / "run-search" for one in (victim, reference))
    wrong = []
    for name in ("search.json", "subnet.yaml", "result.json"):
        if (mine / name).read_text() != (theirs / name).read_text().replace(str(reference.folder), str(victim.folder)):
            wrong.append(f"{mine / name} differs")
    supernets = [torch.load(one / "last.ckpt", weights_only=True)["state_dict"] for one in (mine, theirs)]
    return Outcome(len(json.loads((mine / "search.json").read_text())["measured"]), difference(*supernets), [], wrong)


# A folder has just been made for a run, and nothing says yet what it is for.
MADE = Strike("os.link", "run.json")

TRAINING = Kind(
    "training run",
    _setup_images,
    _train,
    _check_train,
    [
        MADE,
        Strike("os.rename", "config.yaml"),
        Strike("os.rename", "last.ckpt", count=2, torn=True),
        Strike("os.rename", "last.ckpt", count=3),
        Strike("os.rename", "adapter.safetensors", torn=True),
        Strike("open", "results.jsonl"),
        Strike("open", "results.jsonl", torn=True),
        Strike("os.rename", "result.json"),
    ],
)
SUITE = Kind(
    "suite",
    _setup_suite,
    _suite,
    _check_suite,
    [
        MADE,
        Strike("os.rename", "suite.yaml", torn=True),
        Strike("open", "results.jsonl", count=2, torn=True),
        Strike("os.rename", "last.ckpt", count=3, torn=True, alone=True),
        Strike("os.rename", "choices.json", torn=True),
        Strike("os.rename", "adapter.safetensors"),
        Strike("os.rename", "result.json", count=2, alone=True),
        Strike(after=2.0, alone=True),
    ],
)
SEARCH = Kind(
    "search",
    _setup_images,
    _search,
    _check_search,
    [
        MADE,
        Strike("os.rename", "last.ckpt", count=2, torn=True),
        Strike("os.rename", "search.json", count=5, torn=True),
        Strike("os.rename", "subnet.yaml", torn=True),
        Strike("os.rename", "result.json"),
    ],
)
