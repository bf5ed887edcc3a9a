"""Pictures of a test: images with their predictions, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, INK = "#1a7f37", "#cf222e", "#24292f"
NAMED_CLASSES = 40  # more names than this cannot be read on one axis
NUMBERED_CLASSES = 16  # nor more numbers than these in the cells


def _shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def prediction_grid(images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str], columns: int = 8) -> Figure:
    """Images uint8 [N, 3, H, W], each under its predicted class and probability; a wrong one also names the label."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.55 * columns, 2.05 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    for axis, image, label, guess, sure in zip(axes, images, labels, predicted, confidence, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        right = int(label) == int(guess)
        title = f"{_shorten(classes[int(guess)])} ({float(sure):.0%})"
        axis.set_title(title, fontsize=8, color=RIGHT if right else WRONG, pad=3)
        if not right:
            axis.set_xlabel(f"is {_shorten(classes[int(label)])}", fontsize=8, color=INK, labelpad=2)
    for axis in figure.axes:
        _bare(axis)
        if not axis.images:
            axis.set_axis_off()
    return figure


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def confusion_figure(confusion: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Counts [K, K] with labels in rows and predictions in columns, coloured by their share of the row."""
    from matplotlib.figure import Figure

    count = len(classes)
    side = min(12.0, 3.4 + 0.42 * count) if count <= NAMED_CLASSES else 9.0
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="compressed")  # for a square axis with a bar
    axis = figure.subplots()
    share = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    drawn = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("share of the label's images", fontsize=9)
    axis.set(xlabel="predicted", ylabel="label")
    axis.set_title(title, fontsize=10)
    if count <= NAMED_CLASSES:
        names = [_shorten(name) for name in classes]
        axis.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=8)
        axis.set_yticks(range(count), names, fontsize=8)
    if count <= NUMBERED_CLASSES:
        _number(axis, confusion, share)
    return figure


def _number(axis: Axes, confusion: Tensor, share: Tensor) -> None:
    for row, (counts, shares) in enumerate(zip(confusion.tolist(), share.tolist(), strict=True)):
        for column, (number, part) in enumerate(zip(counts, shares, strict=True)):
            if number:
                color = "white" if part > 0.55 else INK
                axis.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)
