"""The drawing of a file of cases: step time against peak memory, both as shares of full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vpeft.bench.tables import about, times
from vpeft.results.figures import Figure
from vpeft.results.labels import Box, place
from vpeft.results.scatter import levels, marker_shape

WIDTH, HEIGHT = 1120, 900
_PLOT = Box(48, 46, 1108, 848)
_SIZE, _RADIUS = 10.5, 4.0
_KINDS = ("best", "published", "beaten")  # of the markers
_TITLE = "Step time against peak memory"


def figure(data: Mapping[str, Any]) -> Figure:
    """A point for every case with both, ours and Hugging Face peft's; names stand beside them.

    Raises:
        ValueError: The file has no case with time and memory, or no `full` to compare with.
    """
    memory = data.get("memory", {})
    points = [
        (case, memory[case]["memory"] / memory["full"]["memory"], time.median)
        for case, time in times(data).items()
        if case in memory and "full" in memory
    ]
    if not points:
        raise ValueError("This file has no case with both time and memory; measure both, of `full` too.")
    body, hidden = _drawn(points)
    told = "; ".join(f"{case} {time:.2f} of the time, {held:.2f} of the memory" for case, held, time in points)
    caption = f"{hidden} of {len(points)} names have no room; the table has them all." if hidden else ""
    return Figure("bench", _TITLE, caption, f"{about(data)} {told}.", (WIDTH, HEIGHT), body)


def _drawn(points: Sequence[tuple[str, float, float]]) -> tuple[str, int]:
    ranges = [_range(values) for values in ([point[1] for point in points], [point[2] for point in points])]

    def at(held: float, time: float) -> tuple[float, float]:
        across, up = ((value - low) / (high - low) for value, (low, high) in zip((held, time), ranges, strict=True))
        return _PLOT.left + (_PLOT.right - _PLOT.left) * across, _PLOT.bottom - (_PLOT.bottom - _PLOT.top) * up

    svg = list(_frame(at, ranges))
    # What all are compared with chooses its places first, then theirs, then the fastest.
    order = sorted(range(len(points)), key=lambda number: (_KINDS.index(_kind(points[number][0])), points[number][2]))
    centres = [at(*points[number][1:]) for number in order]
    names = [points[number][0] for number in order]
    area = Box(_PLOT.left + 2, _PLOT.top - 8, _PLOT.right + 8, _PLOT.bottom - 2)
    labels = place(centres, names, area, _SIZE, _RADIUS)
    for (x, y), label in zip(centres, labels, strict=True):
        if label and label.leader:
            svg.append(f'<path class="leader" d="M {x:.1f} {y:.1f} L {label.leader[0]:.1f} {label.leader[1]:.1f}"/>')
    for number, (x, y) in zip(order, centres, strict=True):
        case, held, time = points[number]
        told = f"{case}: time {time:.2f}, memory {held:.2f} of full fine-tuning"
        svg.append(f"<g><title>{escape(told)}</title>{marker_shape(_kind(case), x, y)}</g>")
    for name, label in zip(names, labels, strict=True):
        if label:
            x, y = (label.box.left + label.box.right) / 2, label.box.bottom - 0.28 * _SIZE
            text = f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="middle" style="font-size:{_SIZE}px">'
            svg.append(f"{text}{escape(name)}</text>")
    return "\n".join(svg), sum(label is None for label in labels)


def _kind(case: str) -> str:
    return "published" if case.startswith("peft-") else "best" if case in ("full", "linear") else "beaten"


def _range(values: Sequence[float]) -> tuple[float, float]:
    return 0.9 * min(values) - 0.02, 1.05 * max(1.0, *values)


def _frame(at: Any, ranges: Sequence[tuple[float, float]]) -> Sequence[str]:
    svg = []
    for value in levels(*ranges[0]):
        x, _ = at(value, 1)
        svg.append(f'<path class="grid" d="M {x:.1f} {_PLOT.top} V {_PLOT.bottom}"/>')
        svg.append(f'<text class="tick" x="{x:.1f}" y="{_PLOT.bottom + 18}" text-anchor="middle">{value:g}</text>')
    for value in levels(*ranges[1]):
        _, y = at(1, value)
        svg.append(f'<path class="grid" d="M {_PLOT.left} {y:.1f} H {_PLOT.right}"/>')
        svg.append(f'<text class="tick" x="{_PLOT.left - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    x, y = at(1, 1)
    svg.append(f'<path class="axis" stroke-dasharray="4 4" d="M {x:.1f} {_PLOT.bottom} V {y:.1f} H {_PLOT.left}"/>')
    middle = (_PLOT.left + _PLOT.right) / 2
    across = "peak memory / full fine-tuning"
    svg.append(f'<text class="title" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{across}</text>')
    svg.append('<text class="title" x="4" y="16">step time / full fine-tuning</text>')
    x = _PLOT.right
    for kind, text in zip(reversed(_KINDS), ("ours", "Hugging Face peft", "full, linear"), strict=True):
        x -= 6.5 * len(text)
        svg.append(f'<text class="tick" x="{x:.1f}" y="20">{text}</text>{marker_shape(kind, x - 10, 16)}')
        x -= 30
    return svg
