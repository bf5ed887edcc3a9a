"""Means with their confidence intervals, a row a method."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vpeft.results.labels import cut
from vpeft.results.scatter import levels

_LEFT, _RIGHT, _TOP, _ROW, _LONGEST = 126, 346, 34, 18, 16


def intervals(found: Sequence[tuple[str, float, float | None]], title: str) -> tuple[str, int]:
    """The inside of an SVG, and its height.

    Args:
        found: Name, mean and half of the interval or None, in the order of the rows.
        title: Of the axis.
    """
    low = min(mean - (half or 0) for _, mean, half in found)
    high = max(mean + (half or 0) for _, mean, half in found)
    if high - low < 1e-9:
        low, high = low - 1, high + 1

    def x(value: float) -> float:
        return _LEFT + 8 + (_RIGHT - _LEFT - 16) * (value - low) / (high - low)

    bottom = _TOP + _ROW * len(found)
    svg = [f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>']
    for level in levels(low, high):
        svg.append(f'<path class="grid" d="M {x(level):.1f} {_TOP - 6} V {bottom}"/>')
        svg.append(f'<text class="tick" x="{x(level):.1f}" y="{bottom + 14}" text-anchor="middle">{level:g}</text>')
    for number, (name, mean, half) in enumerate(found):
        y = _TOP + _ROW * number + 6
        said = f"{mean:.2f}" + (f" ± {half:.2f}" if half is not None else "")
        svg.append(
            f'<g><title>{escape(name)}: {said}</title><text class="name" x="{_LEFT - 8}" y="{y + 4}" '
            f'text-anchor="end">{escape(cut(name, _LONGEST))}</text>'
        )
        if half is not None:
            svg.append(f'<path class="whisker" d="M {x(mean - half):.1f} {y} H {x(mean + half):.1f}"/>')
        svg.append(f'<circle class="best" cx="{x(mean):.1f}" cy="{y}" r="4"/>')
        svg.append(f'<text class="tick" x="{_RIGHT + 10}" y="{y + 4}">{said}</text></g>')
    return "\n".join(svg), bottom + 22
