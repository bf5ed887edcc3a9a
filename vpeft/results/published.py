"""Published numbers of VTAB-1k, with what is known of how they were made.

published.yaml holds numbers and sources; families.yaml says what its protocol texts mean.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.results.averages import GROUPS, TASKS, Averages, averages
from vpeft.yaml_file import load_yaml

PUBLISHED = Path(__file__).parent / "published.yaml"
FAMILIES = Path(__file__).parent / "families.yaml"
BENCHMARKS = ("VTAB-1k", "VTAB-1k/cifar")
FROM_MEMORY = "M"
CONFIDENCE = {"F": "read off a figure, ±0.1", "P?": "uncertain", "L": "as its README prints it"}


@dataclass(frozen=True)
class Facts:
    """How a number was made; None is not recorded.

    Args:
        backbone: Weights of ViT-B/16: `orig` or `augreg`.
        normalization: imagenet, inception or none.
        selection: last, best_val or best_test.
        lossy: Whether the images are JPEG files for tasks whose images are not.
        resize: squash or crop.
        interpolation: bilinear or bicubic.
        split: What was trained on.
        augment: Random changes of training images.
    """

    backbone: str | None
    normalization: str | None
    selection: str | None
    lossy: bool | None
    resize: str | None
    interpolation: str | None
    split: str | None
    augment: str | None


@dataclass(frozen=True)
class Published:
    """One method under one protocol of one source.

    Args:
        method: Its name in published.yaml.
        spec: What the method entry of a run of the same method holds, or None.
        backbone: In the source's words.
        family: Its protocol, a key of families.yaml.
        facts: What that protocol is.
        caveats: What differs besides.
        per_task: Accuracy in per cent by task, where published.
        averages: As published, or of the published per-task numbers.
        params_m: Trained parameters in millions.
        source: Where it was printed.
        notes: Inconsistencies and doubts, in words.
    """

    method: str
    spec: dict[str, Any] | None
    backbone: str
    family: str
    facts: Facts
    caveats: tuple[str, ...]
    per_task: dict[str, float]
    averages: Averages
    params_m: float | None
    source: str
    notes: tuple[str, ...]

    def is_of(self, method: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a run's list of methods is this one method."""
        specs = list(method)
        return (
            self.spec is not None
            and len(specs) == 1
            and all(specs[0].get(key, value) == value for key, value in self.spec.items())
        )


@functools.cache
def load() -> tuple[Published, ...]:
    """Every published row of VTAB-1k; values that nobody has verified are left out (`unverified`)."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in _vtab():
        if entry["confidence"] == FROM_MEMORY:
            continue
        key = entry["method"], entry["backbone"], family_of(entry["protocol"])
        grouped.setdefault(key, []).append(entry)
    return tuple(_row(*key, entries) for key, entries in grouped.items())


def unverified() -> list[str]:
    """Methods with a value that was noted from memory, which is not shown before somebody has looked it up."""
    return [entry["method"] for entry in _vtab() if entry["confidence"] == FROM_MEMORY]


@functools.cache
def read_published() -> list[dict[str, Any]]:
    """All entries of published.yaml, of every benchmark."""
    return load_yaml(PUBLISHED.read_text(encoding="utf-8"))


@functools.cache
def read_families() -> dict[str, Any]:
    """The content of families.yaml."""
    return load_yaml(FAMILIES.read_text(encoding="utf-8"))


def family_of(protocol: str) -> str:
    """The family that a protocol text belongs to."""
    found = [
        (len(start), name)
        for name, family in read_families()["families"].items()
        for start in family["begins"]
        if protocol.startswith(start)
    ]
    return max(found)[1]


def _vtab() -> list[dict[str, Any]]:
    return [entry for entry in read_published() if entry["benchmark"] in BENCHMARKS]


def _row(method: str, backbone: str, family: str, entries: list[dict[str, Any]]) -> Published:
    known = read_families()
    facts = {key: value for key, value in known["families"][family].items() if key not in ("begins", "caveats")}
    per_task = {task: value for entry in entries for task, value in _per_task(entry).items()}
    groups = next((entry["groups"] for entry in entries if "groups" in entry and not _printed(entry)), None)
    found = averages(per_task)
    stated = Averages(
        dict(groups) if groups else found.groups,
        _value(entries, "acc_group_mean", found.group_mean),
        _value(entries, "acc_task_mean", found.task_mean),
    )
    return Published(
        method,
        known["methods"][method],
        backbone,
        family,
        Facts(backbone=known["backbones"][backbone], **facts),
        tuple(known["families"][family]["caveats"]),
        per_task,
        stated,
        next((entry["params_m"] for entry in entries if entry["params_m"] is not None), None),
        "; ".join(dict.fromkeys(entry["source"] for entry in entries)),
        tuple(dict.fromkeys([*_inconsistencies(entries, found), *_doubts(entries, family)])),
    )


def _per_task(entry: Mapping[str, Any]) -> dict[str, float]:
    if entry["metric"] == "acc":
        return {"cifar100": entry["value"]}
    return dict(zip(TASKS, entry["per_task"], strict=True)) if "per_task" in entry else {}


def _printed(entry: Mapping[str, Any]) -> bool:
    return entry["metric"].endswith("_printed")


def _value(entries: list[dict[str, Any]], metric: str, otherwise: float | None) -> float | None:
    """The stated average: calculated or measured before printed, which may be wrong."""
    stated = sorted((_printed(entry), entry["value"]) for entry in entries if entry["metric"].startswith(metric))
    return stated[0][1] if stated else otherwise


def _inconsistencies(entries: list[dict[str, Any]], found: Averages) -> list[str]:
    """Where a stated number is not the average of the numbers beside it."""
    notes = []
    for entry in entries:
        mean = found.task_mean if entry["metric"].startswith("acc_task_mean") else found.group_mean
        if entry["metric"] != "acc" and mean is not None and not _rounds_to(mean, entry["value"]):
            notes.append(f"printed {entry['value']}, its per-task row averages {mean:.2f}")
        for group in GROUPS:
            mean = found.groups[group]
            if "groups" in entry and mean is not None and not _rounds_to(mean, entry["groups"][group]):
                notes.append(f"{group} printed {entry['groups'][group]}, its per-task row averages {mean:.2f}")
    return notes


def _rounds_to(value: float, printed: float) -> bool:
    digits = len(str(float(printed)).partition(".")[2])  # at least one: the file keeps no trailing zero
    return abs(value - printed) <= 0.5 * 10**-digits + 1e-9


def _doubts(entries: list[dict[str, Any]], family: str) -> list[str]:
    """What the protocol texts add to their family, and the confidence where it is low."""
    starts = read_families()["families"][family]["begins"]
    notes = []
    for entry in entries:
        text = entry["protocol"]
        start = max((known for known in starts if text.startswith(known)), key=len)
        rest = text.removeprefix(start).lstrip(" ;,") if family != "not recorded" else text
        notes += [rest] if rest else []
        notes += [CONFIDENCE[entry["confidence"]]] if entry["confidence"] in CONFIDENCE else []
    return notes
