"""Find the samples that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data import captions, conversations, rendered, shards, vqa, vqa_captions
from mllm.data.shelf import Shelf
from mllm.data_schema import SETS, DataConfig
from mllm.sample import Sample
from vpeft.data.ranking import ranked
from vpeft.nearest import did_you_mean

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".tar")


def locate(config: DataConfig) -> tuple[dict[str, Shelf], dict[str, Any]]:
    """The splits, `train`, `val` and `test` and what else a set has, and what is known of where they come from.

    Of `test` as many as `config.test_limit` says; `test_of` is how many there were.

    Raises:
        ValueError: Files are missing or of no known kind, or a sample has a fault.
        RuntimeError: A published package cannot be fetched.
    """
    found, facts = _whole(config)
    test, limit = found["test"], config.test_limit
    if limit is not None and limit < len(test):
        # By the key that an evaluation chooses by: those that it asks are among these.
        order = ranked(range(len(test)), f"{config.task}-test", [sample.id for sample in test])
        found["test"] = test.take(sorted(order[:limit]))
    return found, facts | {"test_of": len(test)}


def _whole(config: DataConfig) -> tuple[dict[str, Shelf], dict[str, Any]]:
    if config.task in ("rendered", "rendered_pairs"):
        parts = rendered.read(config.task == "rendered_pairs", rendered.counts(config.count))
        return _shelved(parts), {"format": "rendered", "synthetic": True, "licence": None, "packages": []}
    if config.task in (vqa.NAME, vqa_captions.NAME):
        packages = [{"package": vqa.PACKAGE, "sha256": vqa.SHA256}]
        facts = {"format": "embedded", "synthetic": True, "licence": vqa.LICENCE, "packages": packages}
        return _shelved(vqa.read(config.question) if config.task == vqa.NAME else vqa_captions.read()), facts
    files = {"train": config.files.train, "val": config.files.val, "test": config.files.test}
    if not files["train"] and not files["test"]:
        raise ValueError(
            f"data.task '{config.task}' has no files; {did_you_mean(config.task, SETS)} For data of your own give "
            "data.root and data.files.train."
        )
    root = _folder(config)
    shelves = {part: Shelf(_read(root, names, part)) for part, names in files.items()}
    return shelves, {"format": "files", "synthetic": False, "licence": None, "packages": []}


def _shelved(parts: dict[str, list[Sample]]) -> dict[str, Shelf]:
    return {part: Shelf(samples) for part, samples in parts.items()}


def _folder(config: DataConfig) -> Path:
    root = (config.root or Path()).expanduser()
    if config.root is None or not root.is_dir():
        given = f"data.root {root} is not a folder" if config.root else "data.root is not set"
        raise ValueError(f"{given}; give the folder that holds data.files and the images.")
    return root


def _read(root: Path, patterns: list[str], part: str) -> Iterator[Sample]:
    for pattern in patterns:
        if Path(pattern).is_absolute():
            raise ValueError(f"data.files.{part}: '{pattern}' must be a path or a pattern below data.root {root}.")
        files = sorted(root.glob(pattern))
        if not files:
            raise ValueError(
                f"data.files.{part}: there is no '{pattern}' in {root}; a pattern is written as shard-*.tar."
            )
        for file in files:
            yield from _samples(file, root)


def _samples(file: Path, root: Path) -> Iterator[Sample]:
    kind = file.suffix.lower()
    if kind not in _SUFFIXES:
        raise ValueError(f"{file} is of no known kind; there are {', '.join(_SUFFIXES)} (compressed ones unpacked).")
    if kind == ".tar":
        return shards.read(file)
    if kind in (".csv", ".tsv"):
        return captions.read(file, root)
    records = conversations.load_records(file)
    if records and isinstance(records[0], dict) and "conversations" in records[0]:
        return conversations.read(records, file, root)
    return captions.read(file, root, records)
