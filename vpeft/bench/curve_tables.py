"""Markdown and the drawing of a file of curves."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from typing import Any

from vpeft.bench.tables import markdown, ran
from vpeft.bench.turns import ratios

Data = Mapping[str, Any]
TITLES = {"patch": "tokens (patch size)", "image_size": "image size"}


def parts(data: Data) -> dict[str, str]:
    """Every table of a file of curves."""
    return {"about": about(data), "growth": growth(data), "points": points(data)}


def about(data: Data) -> str:
    """What was measured, on what, when."""
    shape = data["setting"]
    lines = [
        f"ViT of width {shape['dim']} and depth {shape['depth']}, {shape['image_size']} px in patches of "
        f"{shape['patch']}, batch {shape['batch']}, {shape['prompts']} prompts, rank and bottleneck {shape['rank']}, "
        f"{shape['precision']}, {shape['device']}, {shape['threads']} threads; one of these changes at a time."
    ]
    return "\n".join(dict.fromkeys([*lines, *map(ran, data["runs"])]))


def growth(data: Data) -> str:
    """From the smallest to the largest value: times as much time and memory, beside what theory expects."""
    rows = []
    for axis, curve in data["curves"].items():
        for method, found in by_method(curve).items():
            low, high = found[0], found[-1]
            expected = {name: high["expected"][name] / low["expected"][name] for name in ("operations", "memory")}
            time, held = ratios(high["seconds"], low["seconds"]), high["memory"] / low["memory"]
            counted = high["operations"] / low["operations"]
            rows.append(
                [
                    f"{TITLES.get(axis, axis)}: {low['value']} to {high['value']}",
                    method,
                    f"{low['tokens']} to {high['tokens']}",
                    f"{expected['operations']:.2f}",
                    f"{counted:.2f}",
                    f"{time:.2f}",
                    f"{time.median / expected['operations']:.2f}",
                    f"{expected['memory']:.2f}",
                    f"{held:.2f}",
                ]
            )
    columns = [
        "along",
        "method",
        "tokens",
        "operations, theory",
        "counted",
        "time",
        "time / theory",
        "memory, theory",
        "memory",
    ]
    return markdown(columns, rows).replace("--- | ---:", "--- | ---", 1)


def points(data: Data) -> str:
    """Every point."""
    rows = [
        [
            TITLES.get(axis, axis),
            one["method"],
            str(one["value"]),
            str(one["tokens"]),
            f"{one['operations'] / 1e9:.2f}",
            f"{one['operations'] / one['expected']['operations']:.3f}",
            f"{1000 * statistics.median(one['seconds']):.0f}",
            f"{one['memory'] / 2**20:,.0f}",
        ]
        for axis, curve in data["curves"].items()
        for one in curve["points"]
    ]
    columns = ["along", "method", "value", "tokens", "GFLOP", "counted / theory", "time, ms", "memory, MiB"]
    return markdown(columns, rows).replace("--- | ---:", "--- | ---", 1)


def by_method(curve: Data) -> dict[str, list[Any]]:
    """The points of one axis, by method, by rising work."""
    found: dict[str, list[Any]] = {}
    for one in curve["points"]:
        found.setdefault(one["method"], []).append(one)
    return {method: sorted(some, key=lambda one: one["expected"]["operations"]) for method, some in found.items()}


def drawing(data: Data) -> str:
    """An SVG: time over expected operations for every axis, on a white ground."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with mpl.rc_context({"svg.hashsalt": "vpeft", "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(11, 2.9 * -(-len(data["curves"]) // 3)), layout="constrained")
        axes = figure.subplots(-(-len(data["curves"]) // 3), 3, squeeze=False).flat
        for place, (axis, curve) in zip(axes, data["curves"].items(), strict=False):
            ticks: list[float] = []
            for number, (method, found) in enumerate(by_method(curve).items()):
                x = [one["tokens"] if axis in TITLES else one["value"] for one in found]
                ticks = ticks or x
                base = statistics.median(found[0]["seconds"])
                y = [statistics.median(one["seconds"]) / base for one in found]
                expected = [one["expected"]["operations"] / found[0]["expected"]["operations"] for one in found]
                place.plot(x, y, "osD^v"[number % 5], color=f"C{number}", label=method, markersize=5)
                place.plot(x, expected, "--", color=f"C{number}", linewidth=1)
            place.set(xscale="log", yscale="log", xlabel="tokens" if axis in TITLES else axis)
            place.set_xticks(ticks, [f"{one:g}" for one in ticks])
            place.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            place.yaxis.set_major_formatter("{x:g}")
            for side in (place.xaxis, place.yaxis):
                side.set_minor_locator(NullLocator())
            place.set_title(TITLES.get(axis, axis), fontsize=9)
            place.set_ylabel("time / smallest")
            place.grid(True, which="major", color="#ddd")
            place.legend(fontsize=7, frameon=False)
        for place in list(axes):
            place.remove()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
