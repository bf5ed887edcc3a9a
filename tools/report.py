"""Runs beside published numbers: tools/report.py RUNS... [--task A,B] [--method A,B] [--markdown FILE] ..."""

from collections.abc import Sequence
from pathlib import Path

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/report.py",
        description="Means over seeds and both averages of VTAB-1k, beside published numbers that may be compared and, "
        "marked with the reasons, those that may not.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="results.jsonl files, or folders of runs")
    parser.add_argument("--task", metavar="A,B", help="only these tasks, and no averages")
    parser.add_argument("--method", metavar="A,B", help="only these methods")
    for kind in ("markdown", "csv", "latex"):
        parser.add_argument(f"--{kind}", metavar="FILE", type=Path, help=f"also write {kind} to this file")
    arguments = parser.parse_args(argv)

    from vpeft.results import render, report

    found = report.build(arguments.runs, cli.words(arguments.task), cli.words(arguments.method))
    render.terminal(found)
    for file, written in (
        (arguments.markdown, render.markdown),
        (arguments.csv, render.as_csv),
        (arguments.latex, render.latex),
    ):
        if file:
            file.write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
