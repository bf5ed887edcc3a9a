"""What a run may be compared with: every difference between two settings, in words."""

from __future__ import annotations

from dataclasses import fields

from vpeft.results.published import Facts, Published

_SELECTION = {"last": "the last epoch", "best_val": "the best epoch on val200", "best_test": "the best epoch on test"}
_NAMES = {
    "backbone": "backbone",
    "normalization": "normalisation",
    "selection": "selection",
    "lossy": "image files",
    "resize": "resizing",
    "interpolation": "interpolation",
    "split": "training images",
    "augment": "augmentation",
}
_BACKBONES = {"orig": "original in21k", "augreg": "augreg in21k"}
_FILES = {True: "lossy JPEG", False: "lossless"}


def reasons(ours: Facts, theirs: Facts) -> list[str]:
    """Why two numbers cannot be compared; none if they can."""
    found = []
    if theirs.selection == "best_test":
        found.append("theirs is the best epoch on the test split")
    for item in fields(Facts):
        name, mine, other = item.name, getattr(ours, item.name), getattr(theirs, item.name)
        if mine == other or (name == "selection" and other == "best_test"):
            continue
        if other is None:
            found.append(f"{_NAMES[name]}: theirs is not recorded")
        else:
            found.append(f"{_NAMES[name]}: ours {_words(name, mine)}, theirs {_words(name, other)}")
    return found


def verdict(ours: Facts, theirs: Published, complete: str | None = None) -> str:
    """Whether a published row may stand beside runs of a setting, with the reasons or what differs besides.

    Args:
        complete: Why averages cannot be compared although single tasks can, or None.
    """
    against = reasons(ours, theirs.facts) + ([complete] if complete else [])
    if against:
        return f"not comparable: {'; '.join(against)}"
    return "comparable" + (f"; theirs: {'; '.join(theirs.caveats)}" if theirs.caveats else "")


def comparable(ours: Facts, theirs: Published) -> bool:
    """Whether single tasks may be compared."""
    return not reasons(ours, theirs.facts)


def _words(name: str, value: object) -> str:
    if name == "lossy":
        return _FILES[bool(value)]
    if name == "selection":
        return _SELECTION.get(str(value), str(value))
    return _BACKBONES.get(str(value), str(value)) if name == "backbone" else str(value)
