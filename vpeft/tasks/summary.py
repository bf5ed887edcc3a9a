"""The table at the end of a run."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from vpeft.duration import duration
from vpeft.results import Row


def print_summary(row: Row, saved: dict[str, str], console: Console | None = None) -> None:
    """Show a finished run in the terminal: parameters, time, accuracy, and where everything lies.

    Args:
        row: Its result row.
        saved: What was saved -> where.
        console: Where to print; None is standard output.
    """
    console = console or Console()
    console.print()
    console.print(_parameters(row))
    console.print(_outcome(row))
    for what, where in saved.items():  # outside the table, which would break a path at its border
        console.print(f" [bold]{what:<14}[/bold] {where}", soft_wrap=True, highlight=False)


def _parameters(row: Row) -> Table:
    counts = row["parameters"]
    table = Table("part", box=box.SIMPLE_HEAD, title="parameters", title_justify="left", title_style="bold")
    for column in ("trained", "total", "share trained"):
        table.add_column(column, justify="right")
    names = "+".join(spec["name"] for spec in row["method"])
    backbone = counts["adopted"] + counts["frozen"]
    neck = [("neck", counts["neck"], counts["neck"])] if row["neck"] else []
    parts = [
        (f"method ({names})", counts["method"], counts["method"]),
        *neck,
        ("head", counts["head"], counts["head"]),
        (f"backbone ({row['backbone']['name']})", counts["adopted"], backbone),
    ]
    for name, trained, total in parts:
        table.add_row(name, f"{trained:,}", f"{total:,}", f"{trained / total:.2%}" if total else "-")
    trained = counts["total"] - counts["frozen"]
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{counts['total']:,}", f"{trained / counts['total']:.2%}", style="bold")
    return table


def _outcome(row: Row) -> Table:
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    test, time, selection = row["test"], row["time"], row["selection"]
    if test is None:
        table.add_row("test", "none (train.test false)")
    elif row["kind"] == "classification":
        table.add_row("test accuracy", f"{test['accuracy']:.2%} of {test['images']:,} images (ECE {test['ece']:.3f})")
    elif row["kind"] == "multitask":
        for name, measures in test["tasks"].items():
            table.add_row(f"test {name.replace('_', ' ')}", _task(measures))
        if test["relative_improvement"] is not None:
            table.add_row("all tasks", f"{test['relative_improvement']:+.2%} of models of one task each")
        score = f"{test['score']:.2%} of {test['images']:,} images (mean of the mIoUs and of 1 - angle / 180)"
        table.add_row("test score", score)
    else:
        others = f"mAcc {test['macc']:.2%}, aAcc {test['aacc']:.2%}"
        table.add_row("test mIoU", f"{test['miou']:.2%} of {test['images']:,} images ({others})")
    if skipped := row["data"].get("skipped"):
        table.add_row(
            "left out", f"{skipped:,} unreadable {'image' if skipped == 1 else 'images'} (data.on_error skip)"
        )
    for name, score in selection.items():
        if name.startswith("val_") and score is not None:
            table.add_row(name.replace("val_", "val "), f"{score:.2%} in epoch {selection['epoch']}")
    table.add_row("chosen epoch", f"{selection['epoch']} of {row['epochs']} ({selection['rule']})")
    table.add_row("time", _times(time))
    table.add_row("peak memory", f"{row['memory']['peak_bytes'] / 2**30:.2f} GiB ({row['memory']['of']})")
    return table


def _task(measures: dict[str, float | None]) -> str:
    """The measures of one of several tasks."""
    names = {"miou": "mIoU {:.2%}", "max_f": "max F {:.2%}", "angle": "mean angle {:.2f}°"}
    return ", ".join(names[name].format(value) for name, value in measures.items() if value is not None) or "no labels"


def _times(time: dict[str, float | None]) -> str:
    parts = [duration(time["wall_seconds"] or 0.0)]
    if time["step_seconds"] is not None and time["images_per_second"] is not None:
        parts.append(f"{time['step_seconds'] * 1000:.0f} ms a batch")
        parts.append(f"{time['images_per_second']:.0f} images/s")
    if time["data_wait_share"] is not None:
        parts.append(f"{time['data_wait_share']:.1%} waiting for data")
    return ", ".join(parts)
