"""Names beside points, none over another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Of DejaVu Sans, which is wider than the faces that browsers bring: widths of letters in ems.
_NARROW, _WIDE = set("fijlrt.,:;'|!()[]{} -/"), set("mwMW@%…")
LINE = 1.2
_ANGLES = (0, 180, 270, 90, 315, 45, 225, 135, 292, 68, 248, 112)
_REACHES = (9, 16, 26, 38, 52, 68)
_NEAR = 2 * len(_ANGLES)


@dataclass(frozen=True)
class Box:
    """A rectangle in the units of the picture."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, x: float, y: float) -> bool:
        """Whether a point is inside."""
        return self.left < x < self.right and self.top < y < self.bottom

    def within(self, other: Box) -> bool:
        """Whether it lies inside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Label:
    """Where a name stands, and where the line to its point begins if it is far from it."""

    box: Box
    leader: tuple[float, float] | None


def cut(name: str, longest: int) -> str:
    """The name, without its middle if it is longer: variants of one method differ at the end."""
    head = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:head]}…{name[head + 1 - longest :]}"


def width(text: str, size: float) -> float:
    """At most how wide a text is."""
    return size * sum(map(_letter, text))


def _letter(letter: str) -> float:
    if letter in _NARROW:
        return 0.42
    if letter in _WIDE or ord(letter) > 0x2000:
        return 1.0
    return 0.64 if letter.islower() or letter.isdigit() or letter == "_" else 0.8


def place(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    area: Box,
    size: float,
    radius: float,
    lines: Sequence[Box] = (),
) -> list[Label | None]:
    """A place for each text near its point, over no other text, point or leader; None where there is no room.

    The first ones choose first. A place close by that is clear of `lines` is preferred to one on them.

    Args:
        points: Centres of the markers.
        texts: Their names.
        area: Where names may be.
        size: Of the letters.
        radius: Of a marker.
        lines: What is drawn besides, which a text may cover.
    """
    markers = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Label | None] = []
    boxes, leaders = list(markers), []

    def free(x: float, y: float, label: Label) -> bool:
        return (
            label.box.within(area)
            and not any(label.box.meets(box) for box in boxes)
            and not any(label.box.holds(*dot) for line in leaders for dot in line)
            and not (label.leader and any(box.holds(*dot) for box in boxes for dot in _along(x, y, label, radius)))
        )

    for (x, y), text in zip(points, texts, strict=True):
        found = [label for label in _candidates(x, y, width(text, size), LINE * size) if free(x, y, label)]
        clear = [label for label in found[:_NEAR] if not any(label.box.meets(line) for line in lines)]
        chosen = next(iter([*clear, *found]), None)
        placed.append(chosen)
        if chosen:
            boxes.append(chosen.box)
            if chosen.leader:
                leaders.append(list(_along(x, y, chosen, radius)))
    return placed


def _candidates(x: float, y: float, wide: float, tall: float) -> Iterator[Label]:
    for reach in _REACHES:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The side of the box that looks at the marker is about `reach` away from its centre.
            cx = x + reach * dx + wide / 2 * (dx if abs(dx) < 0.5 else math.copysign(1, dx))
            cy = y + reach * dy + tall / 2 * (dy if abs(dy) < 0.5 else math.copysign(1, dy))
            box = Box(cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2)
            near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
            yield Label(box, near if reach > _REACHES[0] else None)


def _along(x: float, y: float, label: Label, radius: float) -> Iterator[tuple[float, float]]:
    """Points of the leader, from outside the own marker on."""
    if label.leader is None:
        return
    to_x, to_y = label.leader
    length = math.hypot(to_x - x, to_y - y)
    for step in range(12):
        at = radius * 1.5 + (length - radius * 1.5) * step / 12
        yield x + (to_x - x) * at / length, y + (to_y - y) * at / length
