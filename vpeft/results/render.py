"""A report in the terminal, and as Markdown and LaTeX."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vpeft.results.report import Report
from vpeft.results.tables import Table, shortened
from vpeft.schema import ConfigError

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


def terminal(report: Report, console: Console | None = None) -> None:
    """Print tables and notes."""
    console = console or Console()
    for section in report.sections:
        console.print()
        console.rule(Text(section.title), align="left")
        console.print(Text(section.about))
        for table in section.tables:
            _print_table(console, table)
        _print_notes(console, section.notes)
    if report.notes:
        console.print()
        _print_notes(console, report.notes)


def _print_notes(console: Console, notes: list[str]) -> None:
    for note in notes:
        console.print(Text(f"- {note}"), soft_wrap=True)


def _print_table(console: Console, table: Table) -> None:
    """The table, over several where its columns do not fit, and its long words as numbered lines below."""
    parts, reasons = shortened(table)
    widths = [max(map(len, column)) + 3 for column in zip(table.columns, *chain(*parts), strict=True)]
    rest = list(range(1, len(table.columns)))
    while rest:
        taken = [0, rest.pop(0)]
        while rest and sum(widths[number] for number in [*taken, rest[0]]) < console.width:
            taken.append(rest.pop(0))
        shown = RichTable(title=Text(table.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for number in taken:
            prose = number == 0 or table.columns[number] in table.words
            shown.add_column(Text(table.columns[number]), justify="left" if prose else "right", no_wrap=True)
        for part in parts:
            shown.add_section()
            for row in part:
                shown.add_row(*(Text(row[number]) for number in taken))
        console.print(shown)
    for number, text in enumerate(reasons, start=1):
        console.print(Text(f"[{number}] {text}"), soft_wrap=True)
    if table.note:
        console.print(Text(table.note), soft_wrap=True)


def markdown(report: Report, pictures: Sequence[Sequence[str]] = ()) -> str:
    """GitHub's Markdown.

    Args:
        pictures: Of every section, where each of its figures lies as a file; without them there are none in the text.
    """
    lines = ["# Results", ""]
    for number, section in enumerate(report.sections):
        lines += [f"## {_prose(section.title)}", "", f"{_prose(section.about)}. {section.counts}.", ""]
        for table in section.tables:
            prose = {0, *(table.columns.index(name) for name in table.words)}
            rule = [":--" if number in prose else "--:" for number in range(len(table.columns))]
            rows = [list(map(_cell, table.columns)), rule, *(list(map(_cell, row)) for row in chain(*table.parts))]
            lines += [f"### {_prose(table.title)}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
            lines += [_prose(table.note), ""] if table.note else []
        for figure, link in zip(section.figures, pictures[number] if pictures else (), strict=False):
            lines += [f"### {_prose(figure.title)}", "", f"![{_prose(figure.title)}]({link})", ""]
            lines += [_prose(figure.caption), ""]
        lines += [*(["### Notes", ""] if section.notes else []), *(f"- {_prose(note)}" for note in section.notes), ""]
    if report.notes:
        lines += ["## Files", "", *(f"- {_prose(note)}" for note in report.notes), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def _prose(text: str) -> str:
    """What a row says is no markup: no code, emphasis, link, picture, heading, list or line of a table."""
    text = re.sub(r"\s+", " ", text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"[`*\[\]]|~~|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
    return re.sub(r"^([#+\->=]|\d+(?=[.)]))", lambda found: _unlisted(found[0]), text)


def _unlisted(start: str) -> str:
    return f"{start}\u200b" if start.isdecimal() else f"\\{start}"  # 1. would begin a list


def latex(report: Report) -> str:
    """Tables for a paper, with the package booktabs; the notes follow as a list."""
    lines = [r"% needs \usepackage{booktabs}"]
    for section in report.sections:
        for table in section.tables:
            prose = {table.columns.index(name): r"p{6cm}" if name == "compared" else "l" for name in table.words} | {
                0: "l"
            }
            spec = "".join(prose.get(number, "r") for number in range(len(table.columns)))
            caption = f"{section.title}. {table.title}. {section.about}.{f' {table.note}' if table.note else ''}"
            lines += [
                r"\begin{table}",
                rf"\caption{{{_escape(caption)}}}",
                rf"\begin{{tabular}}{{{spec}}}",
                r"\toprule",
            ]
            lines.append(_tex_row(table.columns))
            for part in table.parts:
                lines += [r"\midrule", *map(_tex_row, part)]
            lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        if section.notes:
            lines += [r"\begin{itemize}", *(rf"\item {_escape(note)}" for note in section.notes), r"\end{itemize}"]
    return "\n".join([*lines, ""])


def _tex_row(cells: list[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def pictures(report: Report, folder: Path, markdown_file: Path | None) -> list[list[str]]:
    """Write every figure to a folder.

    Args:
        markdown_file: What the paths are relative to; the working directory if None.

    Returns:
        Where they are, by section.
    """
    folder.mkdir(parents=True, exist_ok=True)
    links: list[list[str]] = []
    for number, section in enumerate(report.sections, start=1):
        links.append([])
        for figure in section.figures:
            file = folder / f"{number}-{figure.name}.svg"
            file.write_text(figure.file(), encoding="utf-8")
            start = (markdown_file or Path("report.md")).absolute().parent
            links[-1].append(quote(Path(os.path.relpath(file.absolute(), start)).as_posix()))
    return links


def check_files(written: Mapping[str, Path | None], read: Sequence[Path]) -> None:
    """Refuse to write a report over rows, or one form of it over another.

    Args:
        written: Where each form goes, by its option.
        read: Files and folders of rows.

    Raises:
        ConfigError: A file is one of rows, a folder, or there twice.
    """
    rows = {path.resolve() for path in read}
    taken: dict[Path, str] = {}
    for kind, file in written.items():
        if file is None:
            continue
        if file.is_dir():
            raise ConfigError(f"command line: --{kind} {file} is a folder; give a file")
        if file.resolve() in rows or file.name == "results.jsonl":
            raise ConfigError(f"command line: --{kind} {file} would overwrite result rows; give a file of its own")
        if other := taken.get(file.resolve()):
            raise ConfigError(f"command line: --{other} and --{kind} are both {file}; give each a file of its own")
        taken[file.resolve()] = kind
