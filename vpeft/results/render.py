"""A report in the terminal, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from itertools import chain

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vpeft.data.tables import EMBEDDED
from vpeft.results.averages import GROUPS, TASKS
from vpeft.results.report import Report, Table

_FIRST = ("kind", "suite", "protocol", "setting", "method", "params_m", "seeds", "tasks")
_MEANS = (*GROUPS, "group_mean", "group_mean sd", "task_mean", "task_mean sd")
_LAST = ("compared", "notes", "source")
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
    long: dict[str, int] = {}
    parts = [[_shortened(table, row, long) for row in part] for part in table.parts]
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
    for text, number in long.items():
        console.print(Text(f"[{number}] {text}"), soft_wrap=True)


def _shortened(table: Table, row: list[str], long: dict[str, int]) -> list[str]:
    """The row, with `not comparable [2]` for `not comparable: reasons`; the reasons go to `long`."""
    cells = list(row)
    for name in table.words:
        at = table.columns.index(name)
        head, mark, rest = re.split(r"([:;] |$)", cells[at], maxsplit=1)
        if mark:
            cells[at] = f"{head} [{long.setdefault(rest, len(long) + 1)}]"
    return cells


def markdown(report: Report) -> str:
    """GitHub's Markdown."""
    lines = ["# Results", ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", f"{section.about}.", ""]
        for table in section.tables:
            prose = {0, *(table.columns.index(name) for name in table.words)}
            rule = [":--" if number in prose else "--:" for number in range(len(table.columns))]
            rows = [table.columns, rule, *chain(*table.parts)]
            lines += [f"{table.title}:", "", *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]
        lines += [*(f"- {note}" for note in section.notes), ""]
    if report.notes:
        lines += ["## Files", "", *(f"- {note}" for note in report.notes), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_csv(report: Report) -> str:
    """One line a method and setting, numbers in full; empty is not there."""
    used = {key for record in report.records for key in record}
    known = {*_FIRST, *_MEANS, *_LAST}
    tasks = [task for task in [*TASKS, *EMBEDDED] if task in used]
    tasks += sorted(key for key in used - known - set(tasks) if not key.endswith(" sd"))
    columns = [*_FIRST, *chain(*((task, f"{task} sd") for task in tasks)), *_MEANS, *_LAST]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.records)
    return text.getvalue()


def latex(report: Report) -> str:
    """Tables for a paper, with the package booktabs; the notes follow as a list."""
    lines = [r"% needs \usepackage{booktabs}"]
    for section in report.sections:
        for table in section.tables:
            prose = {0: "l", **{table.columns.index(name): r"p{6cm}" for name in table.words}}
            spec = "".join(prose.get(number, "r") for number in range(len(table.columns)))
            caption = f"{section.title}. {table.title}. {section.about}."
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
