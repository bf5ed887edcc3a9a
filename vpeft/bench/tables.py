"""Markdown of what a file of cases holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vpeft.bench.cases import PAIRS
from vpeft.bench.limits import distances
from vpeft.bench.turns import Spread, ratios

Data = Mapping[str, Any]
MIB, MB = 2**20, 1e6


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all but the first column are numbers."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cell or "-" for cell in row) + " |" for row in (columns, rule, *rows))


def parts(data: Data) -> dict[str, str]:
    """Every table that a file of cases can fill, by name."""
    made = {name: make(data) for name, make in TABLES.items()}
    return {name: text for name, text in made.items() if text}


def about(data: Data) -> str:
    """What was measured, on what, when."""
    setting = data["setting"]
    size = f" at {setting['image_size']} px" if setting.get("image_size") else ""
    lines = [
        f"{setting['backbone']}{size}, random weights, batch {setting['batch']}, {setting['precision']}, "
        f"{setting['device']}, {setting['threads']} threads."
    ]
    for run in data["runs"]:
        lines.append(ran(run))
    return "\n".join(dict.fromkeys(lines))


def ran(run: Mapping[str, Any]) -> str:
    """One run of the tool, in a sentence."""
    machine, versions = run["machine"], run["versions"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['family']}), {machine['cores']} cores"
    names = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "peft") if name in versions)
    return f"{run['date'][:10]} on {where}, load {machine['load']} at the start; Python {versions['python']}, {names}."


def totals(data: Data, case: str) -> list[float]:
    """Seconds of the whole steps of a case, round by round; empty where there are none."""
    parts = _seconds(data, case)
    return [sum(one) for one in zip(*parts.values(), strict=True)] if parts else []


def _seconds(data: Data, case: str) -> dict[str, list[float]]:
    """Of the newest session that has the case."""
    session = _session(data, case)
    return session["seconds"][case] if session else {}


def _session(data: Data, case: str) -> Data | None:
    return next((one for one in reversed(data.get("time", [])) if case in one["seconds"]), None)


def against(data: Data, case: str, other: str) -> Spread | None:
    """Step time of a case over another's of the same rounds."""
    session = _session(data, case)
    if session is None or other not in session["seconds"]:
        return None
    pairs = [
        [sum(one) for one in zip(*session["seconds"][name].values(), strict=True)]  # of a case, round by round
        for name in (case, other)
    ]
    return ratios(*pairs)


def times(data: Data) -> dict[str, Spread]:
    """Step times as shares of full fine-tuning's."""
    found = {case: against(data, case, "full") for case in named(data)}
    return {case: spread for case, spread in found.items() if spread}


def named(data: Data) -> list[str]:
    """All cases of which something is known, in the order in which they were measured."""
    names = [case for session in data.get("time", []) for case in session["seconds"]]
    for measure in ("memory", "inference", "compile", "profile"):
        names += data.get(measure, {})
    return list(dict.fromkeys(names))


def steps(data: Data) -> str:
    """Time of a step and its parts, memory, operations and what is stored."""
    memory, rows = data.get("memory", {}), []
    for case in (case for case in named(data) if case in memory or totals(data, case)):
        seconds, whole, held = _seconds(data, case), totals(data, case), memory.get(case)
        middle = {part: statistics.median(values) for part, values in seconds.items()}
        rows.append(
            [
                case,
                f"{held['parameters']:,}" if held else "",
                f"{(held['file_bytes'] - held['head_bytes']) / MB:.2f}" if held else "",
                *(f"{middle[part]:.2f}" if whole else "" for part in ("forward", "backward", "optimiser")),
                f"{statistics.median(whole):.2f}" if whole else "",
                f"{data['setting']['batch'] / statistics.median(whole):.1f}" if whole else "",
                _shown(against(data, case, "full")),
                _share(memory, case, "operations"),
                _peak(held) if held else "",
                _share(memory, case, "memory"),
                _share(memory, case, "tensors"),
            ]
        )
    columns = [
        "case",
        "trained parameters",
        "file, MB",
        "forward, s",
        "backward, s",
        "optimiser, s",
        "step, s",
        "images/s",
        "time / full",
        "operations / full",
        "peak memory, MiB",
        "memory / full",
        "tensors / full",
    ]
    return markdown(columns, rows) if rows else ""


def _share(memory: Data, case: str, key: str, other: str = "full") -> str:
    if any(key not in memory.get(name, {}) for name in (case, other)):
        return ""
    one, full = (memory[name][key] for name in (case, other))
    return f"{sum(one) / sum(full):.2f}" if isinstance(one, list) else f"{one / full:.2f}"


def _peak(held: Data) -> str:
    return f"{Spread.of([peak / MIB for peak in held.get('peaks', [held['memory']])]):,.0f}"


def _shown(spread: Spread | None) -> str:
    return f"{spread:.2f}" if spread else ""


def inference(data: Data) -> str:
    """Inference with the adapter and merged, against the plain backbone."""
    rows = []
    for case, found in data.get("inference", {}).items():
        seconds = found["seconds"]
        rows.append(
            [
                case,
                f"{1000 * statistics.median(seconds['plain']):.0f}",
                _shown(ratios(seconds["adapted"], seconds["plain"])),
                _shown(ratios(seconds["merged"], seconds["plain"])) if "merged" in seconds else "not merged",
                f"{found['differs']:.0e}" if "differs" in found else "",
            ]
        )
    columns = ["case", "plain, ms", "with the adapter / plain", "merged / plain", "outputs differ by"]
    return markdown(columns, rows) if rows else ""


def compiled(data: Data) -> str:
    """Steps under torch.compile against those without, and what did not compile."""
    rows = [
        [
            case,
            f"{found['compiling']:.0f}",
            str(found["breaks"]),
            f"{statistics.median(found['seconds']['eager']):.2f}",
            f"{statistics.median(found['seconds']['compiled']):.2f}",
            _shown(ratios(found["seconds"]["compiled"], found["seconds"]["eager"])),
        ]
        for case, found in data.get("compile", {}).items()
    ]
    columns = ["case", "compiling, s", "graph breaks", "step, s", "compiled step, s", "compiled / not"]
    return markdown(columns, rows) if rows else ""


def profiled(data: Data) -> str:
    """The kinds of operations that take 0.95 of a step's operations together, the longest first, case by case."""
    rows = []
    for case, found in data.get("profile", {}).items():
        seconds = {name: statistics.median(kind["seconds"]) for name, kind in found["kinds"].items()}
        whole, before = sum(seconds.values()), 0.0
        for name, kind in found["kinds"].items():
            if before >= 0.95 * whole:
                break
            before += seconds[name]
            rows.append(
                [
                    case,
                    f"`{name}`",
                    f"{kind['calls']:,}",
                    f"{seconds[name]:.2f}",
                    f"{seconds[name] / whole:.2f}",
                    *(f"{kind['operations'] / scale / 1e9:,.0f}" for scale in (1, seconds[name])),
                    *(f"{kind['bytes'] / scale / 1e9:,.1f}" for scale in (1, seconds[name])),
                ]
            )
    columns = ["case", "operation", "calls", "s", "share", "GFLOP", "GFLOP/s", "GB", "GB/s"]
    return markdown(columns, rows) if rows else ""


def limits(data: Data) -> str:
    """The distance of every case to its limit, the farthest first."""
    rows = [
        [
            case,
            f"{one.limit:.2f}",
            f"{one.operations:.2f}",
            f"{one.bytes:.2f}",
            _shown(one.time),
            f"{one.distance:.2f}",
            f"{one.own:.2f}",
        ]
        for case, one in distances(data.get("memory", {}), times(data)).items()
    ]
    columns = [
        "case",
        "limit / full",
        "operations / full",
        "bytes / full",
        "time / full",
        "time / limit",
        "time / max(limit, operations)",
    ]
    return markdown(columns, rows) if rows else ""


def pairs(data: Data) -> str:
    """Ours over Hugging Face peft's, on the same model and in the same rounds."""
    memory, rows = data.get("memory", {}), []
    for ours, theirs in PAIRS.items():
        spread, both = against(data, ours, theirs), ours in memory and theirs in memory
        if spread or both:
            shares = [_share(memory, ours, key, theirs) for key in ("memory", "tensors")]
            counts = [f"{memory[name]['parameters']:,}" if both else "" for name in (ours, theirs)]
            rows.append([f"{ours} / {theirs}", *counts, _shown(spread), *shares])
    columns = ["pair", "parameters, ours", "theirs", "time, ours / theirs", "memory", "tensors"]
    return markdown(columns, rows) if rows else ""


def failed(data: Data) -> str:
    """What could not be measured, and why."""
    rows = [
        [case, measure, reason.replace("|", "\\|")]
        for measure, cases in data.get("failed", {}).items()
        for case, reason in cases.items()
    ]
    return markdown(["case", "measure", "reason"], rows).replace("---:", "---") if rows else ""


TABLES = {
    "about": about,
    "steps": steps,
    "peft": pairs,
    "limits": limits,
    "inference": inference,
    "compile": compiled,
    "profile": profiled,
    "failed": failed,
}
