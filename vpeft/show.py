"""What the tools print. Names of the user's are `Text`: rich would read `[red]` in them as a colour."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft.data.images import UnreadableImage, printable
from vpeft.metrics import Evaluation
from vpeft.predict import Prediction

if TYPE_CHECKING:
    from vpeft.dense.mask_predictor import MaskPredictor
    from vpeft.dense.segmentation_schema import InferenceConfig
    from vpeft.tasks.segmentation import Segmented


def predictions(
    found: Iterable[Prediction | UnreadableImage], console: Console | None = None
) -> tuple[list[Prediction], int]:
    """Print one table of the likeliest classes, and each unreadable file on stderr as it is met.

    Returns:
        The predictions, and how many files could not be read.
    """
    table = Table("image", "class")
    table.add_column("probability", justify="right")
    read: list[Prediction] = []
    unreadable = 0
    for one in found:
        if isinstance(one, UnreadableImage):
            print(f"error: {one}", file=sys.stderr)
            unreadable += 1
            continue
        read.append(one)
        for rank, (name, probability) in enumerate(one.top):
            table.add_row(Text("" if rank else printable(one.path)), Text(name), f"{probability:.2%}")
        table.add_section()
    if read:
        (console or Console()).print(table)
    return read, unreadable


def evaluation(
    result: Evaluation, manifest: dict[str, Any], provenance: dict[str, Any], console: Console | None = None
) -> None:
    """Print a test's accuracy, overall and per class, and what it was measured on."""
    table = Table("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    counts = result.confusion.sum(dim=1).tolist()
    for name, count, accuracy in zip(manifest["classes"], counts, result.per_class, strict=True):
        table.add_row(Text(name), f"{count:,}", "-" if accuracy is None else f"{accuracy:.2%}")
    table.add_section()
    table.add_row("all", f"{result.images:,}", f"{result.accuracy:.2%}", style="bold")
    console = console or Console()
    console.print(table)
    skipped = f", {provenance['skipped']} unreadable images skipped" if provenance["skipped"] else ""
    console.print(
        f"{provenance['task']} ({provenance['format']}) test split: top-1 {result.accuracy:.2%}, "
        f"cross-entropy {result.loss:.4f}, ECE {result.ece:.4f}{skipped}",
        markup=False,
    )


def segmentation(
    result: Segmented,
    provenance: dict[str, Any],
    classes: Sequence[str],
    inference: InferenceConfig,
    console: Console | None = None,
) -> None:
    """Print a test's mIoU, overall and per class, and what it was measured on."""
    table = Table("class")
    table.add_column("IoU", justify="right")
    table.add_column("accuracy", justify="right")
    found = result.scores
    for name, iou, acc in zip(classes, found.iou, found.acc, strict=True):
        table.add_row(Text(name), *("-" if value is None else f"{value:.2%}" for value in (iou, acc)))
    table.add_section()
    table.add_row("mean", f"{found.miou:.2%}", f"{found.macc:.2%}", style="bold")
    console = console or Console()
    console.print(table)
    console.print(
        f"{provenance['task']} ({provenance['format']}) test split: mIoU {found.miou:.2%}, aAcc {found.aacc:.2%} of "
        f"{result.images:,} images, absent classes {result.absent}, inference {inference.mode} at "
        f"{' '.join(f'{scale:g}' for scale in inference.scales)}{', mirrored too' if inference.flip else ''}",
        markup=False,
    )


def masks(predictor: MaskPredictor, paths: list[Path], folder: str, top: int, console: Console | None = None) -> int:
    """Write the mask of every image into a folder, and print the classes that cover most of each.

    Returns:
        How many files could not be read.

    Raises:
        ValueError: Two images would have one mask, or a mask would replace an image.
    """
    from vpeft.dense.mask_predictor import save_mask

    places = [Path(folder) / f"{path.stem}.png" for path in paths]
    if twice := {place for place in places if places.count(place) > 1}:
        raise ValueError(
            f"Several images are called {min(twice).stem}, and each mask has its image's name; rename one."
        )
    images = {path.resolve() for path in paths}
    if lost := [place for place in places if place.resolve() in images]:
        raise ValueError(
            f"The mask {lost[0]} would replace an image that is to be segmented; give --masks another folder."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    unreadable = 0
    table = Table("image", "class")
    table.add_column("share", justify="right")
    for path, place in zip(paths, places, strict=True):
        try:
            mask = predictor(path)
        except UnreadableImage as error:
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
            continue
        save_mask(mask, predictor.table, place)
        counts = np.bincount(mask.ravel(), minlength=len(predictor.table.names))
        for rank, at in enumerate(counts.argsort()[::-1][: min(top, int((counts > 0).sum()))]):
            name = Text(predictor.table.names[at])
            table.add_row(Text("" if rank else printable(place)), name, f"{counts[at] / mask.size:.2%}")
        table.add_section()
    if unreadable < len(paths):
        (console or Console()).print(table)
    return unreadable


def merged(files: list[Path], how: str) -> None:
    """Print which files were written and how to load them."""
    print(f"wrote {' and '.join(map(str, files))}\n{how}")
