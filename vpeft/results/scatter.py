"""Accuracy against a cost: points, the Pareto front, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from matplotlib.ticker import MaxNLocator

from vpeft.results.labels import Box, cut, place
from vpeft.results.statistics import pareto

WIDTH, HEIGHT = 440, 340
_PLOT = Box(42, 50, 430, 294)
_SIZE, _RADIUS, _LONGEST = 11.5, 4.5, 26
_SLOT = 46  # of the costs that are 0, which have no logarithm


@dataclass(frozen=True)
class Point:
    """A method.

    Args:
        cost: 0 or more.
        accuracy: In per cent.
        name: Beside the point.
        kind: Published ones do not take part in the front.
    """

    cost: float
    accuracy: float
    name: str
    kind: Literal["ours", "published"] = "ours"


@dataclass(frozen=True)
class Axis:
    """The horizontal axis.

    Args:
        title: What it shows, with the unit.
        written: A number of it in words.
        logarithmic: Whether equal ratios are equal distances; zeros stand apart on the left.
    """

    title: str
    written: Callable[[float], str]
    logarithmic: bool = False


def front(points: Sequence[Point]) -> list[int]:
    """Numbers of the points of ours that no other one of ours beats, by rising cost."""
    ours = [number for number, point in enumerate(points) if point.kind == "ours"]
    return [ours[number] for number in pareto([(points[one].cost, points[one].accuracy) for one in ours])]


def scatter(points: Sequence[Point], axis: Axis, vertical: str) -> tuple[str, int]:
    """The inside of an SVG of WIDTH x HEIGHT, and how many names found no room."""
    across, ticks, zeros = _across([point.cost for point in points], axis)
    up, rungs = _up([point.accuracy for point in points])
    best = front(points)
    at = [(across(point.cost), up(point.accuracy)) for point in points]
    svg = [*_frame(axis, vertical, ticks, zeros, [(up(rung), f"{rung:g}") for rung in rungs])]
    svg += _legend(points, best)
    corners = _stairs([at[number] for number in best])
    if len(best) > 1:
        line = " L ".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        svg.append(f'<path class="front" d="M {line}"/>')
    # The front chooses its places first, and the best of the rest next.
    order = best + sorted(set(range(len(points))) - set(best), key=lambda number: -points[number].accuracy)
    texts = [cut(points[number].name, _LONGEST) for number in order]
    area = Box(_PLOT.left + 2, _PLOT.top - 10, _PLOT.right + 8, _PLOT.bottom - 2)
    lines = [
        Box(min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1)
        for (x, y), (to_x, to_y) in pairwise(corners)
    ]
    labels = place([at[number] for number in order], texts, area, _SIZE, _RADIUS, lines)
    for number, label in zip(order, labels, strict=True):
        if label and label.leader:
            (x, y), (to_x, to_y) = at[number], label.leader
            svg.append(f'<path class="leader" d="M {x:.1f} {y:.1f} L {to_x:.1f} {to_y:.1f}"/>')
    for number in reversed(order):
        svg.append(_marker(points[number], *at[number], number in best, axis))
    for text, label in zip(texts, labels, strict=True):
        if label:
            x, y = (label.box.left + label.box.right) / 2, label.box.bottom - 0.28 * _SIZE
            svg.append(f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>')
    return "\n".join(svg), sum(label is None for label in labels)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the front: level until a point is better, then up."""
    corners = [points[0]]
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (_PLOT.right, corners[-1][1])]


def _across(costs: list[float], axis: Axis) -> tuple[Callable[[float], float], list[tuple[float, str]], bool]:
    """From costs to x, the ticks, and whether there is a place for zeros."""
    zeros = axis.logarithmic and any(cost <= 0 for cost in costs)
    left, right = _PLOT.left + (_SLOT if zeros else 18), _PLOT.right - 40
    scale = math.log10 if axis.logarithmic else float
    there = [scale(cost) for cost in costs if cost > 0 or not axis.logarithmic] or [0.0]
    low, high = min(there), max(there)
    if high - low < (0.3 if axis.logarithmic else 1e-9):
        middle, half = (low + high) / 2, 0.5 if axis.logarithmic else abs(high) / 2 or 0.5
        low, high = middle - half, middle + half

    def x(cost: float) -> float:
        if axis.logarithmic and cost <= 0:
            return _PLOT.left + 16
        return left + (right - left) * (scale(cost) - low) / (high - low)

    if axis.logarithmic:
        factors = (1, 2, 5) if high - low < 2 else (1,)
        values = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    else:
        values = levels(low, high)
    ticks = [(x(value), axis.written(value)) for value in values if value > 0 and left - 14 <= x(value) <= _PLOT.right]
    return x, ([(x(0), "0"), *ticks] if zeros else ticks), zeros


def _up(accuracies: list[float]) -> tuple[Callable[[float], float], list[float]]:
    low, high = min(accuracies), max(accuracies)
    pad = max((high - low) * 0.08, 0.2)
    low, high = low - pad, high + pad

    def y(accuracy: float) -> float:
        return _PLOT.bottom - (_PLOT.bottom - _PLOT.top) * (accuracy - low) / (high - low)

    return y, [level for level in levels(low, high) if level <= 100]


def levels(low: float, high: float) -> list[float]:
    """Some round numbers of a range."""
    found = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(level), 9) for level in found if low <= level <= high]


def _frame(
    axis: Axis, vertical: str, ticks: list[tuple[float, str]], zeros: bool, rungs: list[tuple[float, str]]
) -> Iterator[str]:
    for y, text in rungs:
        yield f'<path class="grid" d="M {_PLOT.left} {y:.1f} H {_PLOT.right}"/>'
        yield f'<text class="tick" x="{_PLOT.left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for x, text in ticks:
        yield f'<path class="axis" d="M {x:.1f} {_PLOT.bottom} v 5"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{_PLOT.bottom + 18}" text-anchor="middle">{text}</text>'
    begin = f"M {_PLOT.left} {_PLOT.bottom} h 27 m 5 0 H" if zeros else f"M {_PLOT.left} {_PLOT.bottom} H"
    yield f'<path class="axis" d="{begin} {_PLOT.right}"/>'
    if zeros:
        yield f'<path class="axis" d="M {_PLOT.left + 25} {_PLOT.bottom + 5} l 4 -10 m 5 0 l -4 10"/>'
    middle = (_PLOT.left + _PLOT.right) / 2
    yield f'<text class="title" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(axis.title)}</text>'
    yield f'<text class="title" x="4" y="14">{escape(vertical)}</text>'


def _legend(points: Sequence[Point], best: list[int]) -> list[str]:
    kinds = {_kind(point, number in best) for number, point in enumerate(points)}
    words = {"best": "Pareto front", "beaten": "beaten", "published": "published, comparable"}
    x, svg = float(_PLOT.right), []
    for kind in reversed([kind for kind in words if kind in kinds]):
        x -= 6 * len(words[kind])
        svg.append(f'<text class="tick" x="{x:.1f}" y="33">{words[kind]}</text>')
        svg.append(marker_shape(kind, x - 10, 29))
        x -= 30
    return svg


def _kind(point: Point, best: bool) -> str:
    return "published" if point.kind == "published" else "best" if best else "beaten"


def _marker(point: Point, x: float, y: float, best: bool, axis: Axis) -> str:
    told = f"{point.name}: {point.accuracy:.2f} %, {axis.written(point.cost)}"
    return f"<g><title>{escape(told)}</title>{marker_shape(_kind(point, best), x, y)}</g>"


def marker_shape(kind: str, x: float, y: float) -> str:
    if kind == "best":
        return f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>'
    if kind == "beaten":
        return f'<rect class="beaten" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path class="published" d="M {x:.1f} {y - 5.5:.1f} l 5.5 5.5 l -5.5 5.5 l -5.5 -5.5 z"/>'
