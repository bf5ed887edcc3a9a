"""Runs beside published numbers: tools/report.py RUNS... [--task A,B] [--method A,B] [--html FILE] ..."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/report.py",
        description="Means over seeds and both averages of VTAB-1k, with ranks, calibration, time and memory, beside "
        "published numbers that may be compared and, marked with the reasons, those that may not.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="results.jsonl files, or folders of runs")
    parser.add_argument("--task", metavar="A,B", help="only these tasks, and no averages")
    parser.add_argument("--method", metavar="A,B", help="only these methods")
    for kind in ("html", "markdown", "csv", "latex"):
        parser.add_argument(f"--{kind}", metavar="FILE", type=Path, help=f"also write {kind} to this file")
    parser.add_argument("--figures", metavar="DIR", type=Path, help="also write the figures as SVG, for the Markdown")
    arguments = parser.parse_args(argv)

    written = {kind: getattr(arguments, kind) for kind in ("html", "markdown", "csv", "latex")}

    from vpeft.fetch import write_atomic
    from vpeft.results import page, records, render, report

    render.check_files(written, arguments.runs)
    found = report.build(arguments.runs, cli.words(arguments.task), cli.words(arguments.method))
    render.terminal(found)
    pictures = render.pictures(found, arguments.figures, arguments.markdown) if arguments.figures else []
    command = shlex.join(["python", "tools/report.py", *argv])
    for kind, write in (
        ("html", lambda: page.html(found, command)),
        ("markdown", lambda: render.markdown(found, pictures)),
        ("csv", lambda: records.as_csv(found.records)),
        ("latex", lambda: render.latex(found)),
    ):
        if written[kind]:
            write_atomic(written[kind], write().encode())


if __name__ == "__main__":
    cli.run(main)
