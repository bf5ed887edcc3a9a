"""The critical-difference diagram of Demšar (JMLR 7, 2006): mean ranks, and bars over what cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vpeft.results.labels import cut, width

WIDTH = 440
_SIZE, _ROW, _LONGEST = 11.5, 18, 14
_TOP, _LEFT, _RIGHT = 62, 152, 288


def diagram(names: Sequence[str], ranks: Sequence[float], groups: Sequence[tuple[int, int]], difference: float | None):
    """The inside of an SVG, and its height.

    Args:
        names: Of the methods, by rising rank.
        ranks: Mean ranks.
        groups: First and last number of methods under one bar.
        difference: The critical one, drawn above the axis; None draws none.
    """
    count = len(names)

    def x(rank: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (rank - 1) / max(count - 1, 1)

    svg = [f'<path class="axis" d="M {_LEFT} {_TOP} H {_RIGHT}"/>']
    step = 1 if count < 10 else -(-(count - 1) // 5)  # numbers of two digits need more room
    for rank in range(1, count + 1, step):
        svg.append(f'<path class="axis" d="M {x(rank):.1f} {_TOP} v -5"/>')
        svg.append(f'<text class="tick" x="{x(rank):.1f}" y="{_TOP - 9}" text-anchor="middle">{rank}</text>')
    if difference is not None:
        end = x(1 + difference)
        svg.append(f'<path class="bracket" d="M {_LEFT} 24 v 8 m 0 -4 H {end:.1f} m 0 -4 v 8"/>')
        middle = (_LEFT + end) / 2
        said = f"critical difference {difference:.2f}"
        anchor = "middle" if width(said, _SIZE) / 2 < middle else "start"
        svg.append(f'<text class="title" x="{middle:.1f}" y="17" text-anchor="{anchor}">{said}</text>')
    levels = _levels(groups)
    first = _TOP + 20 + 7 * (max(levels, default=-1) + 1)
    half = -(-count // 2)
    for number, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        left = number < half
        y = first + _ROW * (number if left else count - 1 - number)
        edge = _LEFT - 10 if left else _RIGHT + 10
        svg.append(f'<path class="hair" d="M {x(rank):.1f} {_TOP} V {y} H {edge}"/>')
        svg.append(f'<circle class="best" cx="{x(rank):.1f}" cy="{_TOP}" r="3"/>')
        shown = escape(cut(name, _LONGEST))
        value = f'<tspan class="quiet">{rank:.2f}</tspan>'
        svg.append(
            f'<text class="name" x="{edge - 4 if left else edge + 4}" y="{y + 4}" '
            f'text-anchor="{"end" if left else "start"}">{f"{shown} {value}" if left else f"{value} {shown}"}'
            f"<title>{escape(name)}: mean rank {rank:.2f}</title></text>"
        )
    for (low, high), level in zip(groups, levels, strict=True):
        y = _TOP + 10 + 7 * level
        svg.append(f'<path class="alike" d="M {x(ranks[low]) - 4:.1f} {y} H {x(ranks[high]) + 4:.1f}"/>')
    return "\n".join(svg), first + _ROW * (half - 1) + 16


def _levels(groups: Sequence[tuple[int, int]]) -> list[int]:
    """The highest free line under the axis for each bar; bars on one line share no method."""
    ends: list[int] = []
    levels = []
    for low, high in groups:
        level = next((number for number, end in enumerate(ends) if end < low), len(ends))
        ends[level : level + 1] = [high]
        levels.append(level)
    return levels
