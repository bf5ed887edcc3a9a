"""What a row says: enough to repeat the run, and to know what its number may be compared with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import torch

import vpeft

# What a number may depend on.
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "lightning",
    "torchmetrics",
    "numpy",
    "pillow",
)


class Row(TypedDict):
    """One run; every value is plain JSON, and None is 'not measured' or 'does not apply'.

    Members of a suite have two more fields, `suite` and `tuning` (`vpeft.suite.rows`), and those of a pack `packed`:
    members, position, and in `shared` the fields that are of all members together (`vpeft.packed`).

    Args:
        id: Of the run; a resumed run keeps it, so a run has one row.
        date: When the run ended, UTC, ISO 8601.
        kind: Of run: classification, segmentation, ...
        task: Name of the data.
        protocol: name of the one the run was given, and what it departs from, {dotted key: value}; None without one.
        method: List of method specs, every option written out.
        backbone: name, pretrained, image_size, drop_path, and weights {source, origin, sha256}.
        neck: name and its options, of what runs the backbone for dense prediction; None without one.
        head: kind and its options.
        preprocessing: normalization {name, mean, std}, resize, interpolation, ... as the data module reports them.
        data: format, lossy, split, counts, skipped, packages, ... as the data module reports them.
        optim: Optimiser settings.
        train: Settings of the run.
        epochs: Epochs trained.
        selection: rule (`last` or `best_val`), the epoch it chose, its val_accuracy on val200 or val_miou.
        seed: Of initialisation, order and dropout.
        test: accuracy (top-1), per_class {name: accuracy}, ece, loss, images; of segmentation miou, macc, aacc,
            per_class {name: IoU}, loss, images; of several tasks score (mean of the mIoUs and of 1 - angle / 180),
            relative_improvement, tasks {name: its measures}, per_class {task/name: IoU}, loss, images. None where
            train.test is false.
        val: The same without per_class, of the last evaluation on the validation split; None without one.
        parameters: Trained ones in method, neck, head and adopted (the backbone's own); frozen; total.
        time: wall_seconds of all processes of the run, step_seconds, images_per_second,
            data_wait_share (of epochs from the second on).
        memory: peak_bytes, and of what: a GPU's tensors or the process.
        device: What computed, in words; processes; threads.
        versions: python, vpeft and the libraries.
        git: Commit of this code, `-dirty` if changed; None outside a checkout.
        folder: The run's folder.
    """

    id: str
    date: str
    kind: str
    task: str
    protocol: dict[str, Any] | None
    method: list[dict[str, Any]]
    backbone: dict[str, Any]
    neck: dict[str, Any] | None
    head: dict[str, Any]
    preprocessing: dict[str, Any]
    data: dict[str, Any]
    optim: dict[str, Any]
    train: dict[str, Any]
    epochs: int
    selection: dict[str, Any]
    seed: int
    test: dict[str, Any] | None
    val: dict[str, Any] | None
    parameters: dict[str, int]
    time: dict[str, float | None]
    memory: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    git: str | None
    folder: str


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that are installed."""
    found = {"python": platform.python_version(), "vpeft": vpeft.__version__}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # names the build too (+cpu, +cu130), which package metadata may not
    return found


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, with `-dirty` where files differ from it."""
    package = Path(vpeft.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed copy may lie in somebody else's repository, whose commit says nothing.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The present moment, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
