"""A report as one HTML page: nothing is loaded from elsewhere, no script, and every word of a row is only a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from importlib.resources import files

from vpeft.results.figures import STYLE, Figure
from vpeft.results.report import Report, Section
from vpeft.results.tables import Table, shortened

_PAGE_STYLE = files("vpeft.results").joinpath("page.css").read_text(encoding="utf-8")
# A browser then refuses to run or to load anything, whatever were to slip into the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html(report: Report, command: str) -> str:
    """The page.

    Args:
        command: What made it, for who wants to make it again.
    """
    links = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a> <span class="quiet">{escape(section.counts)}</span></li>'
        for number, section in enumerate(report.sections, start=1)
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Results</title>\n<style>\n{STYLE}{_PAGE_STYLE}</style>\n</head>\n<body>\n<main>",
            f"<header><h1>Results</h1>\n<nav><ul>{links}</ul></nav></header>",
            *(_section(section, number) for number, section in enumerate(report.sections, start=1)),
            *([f'<section id="files"><h2>Files</h2>\n{_list(report.notes)}</section>'] if report.notes else []),
            f'<footer><p>Made by</p><pre tabindex="0">{escape(command)}</pre></footer>',
            "</main>\n</body>\n</html>\n",
        ]
    )


def _section(section: Section, number: int) -> str:
    accuracy, others = [], []
    for at, table in enumerate(section.tables, start=1):
        (accuracy if table.title.startswith("Accuracy") else others).append(_table(table, f"s{number}t{at}"))
    figures = "\n".join(_figure(figure, f"s{number}-") for figure in section.figures)
    return "\n".join(
        [
            f'<section id="s{number}"><h2>{escape(section.title)}</h2>',
            f'<p class="about">{escape(section.about)}. {escape(section.counts)}.</p>',
            *accuracy,
            *([f'<div class="figures">\n{figures}\n</div>'] if figures else []),
            *others,
            *([f'<div class="notes"><h3>Notes</h3>\n{_list(section.notes)}</div>'] if section.notes else []),
            "</section>",
        ]
    )


def _figure(figure: Figure, prefix: str) -> str:
    return (
        f'<figure id="{prefix}{figure.name}"><h3>{escape(figure.title)}</h3>\n<div class="box" tabindex="0">'
        f"{figure.svg(prefix)}</div>\n<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _table(table: Table, mark: str) -> str:
    parts, reasons = shortened(table)
    prose = {0, *(table.columns.index(name) for name in table.words)}
    head = "".join(
        f'<th scope="col"{"" if at in prose else " class=number"}>{escape(name)}</th>'
        for at, name in enumerate(table.columns)
    )
    bodies = "\n".join(f"<tbody>\n{''.join(_row(row, prose, mark) for row in part)}</tbody>" for part in parts)
    why = "".join(f'<li id="{mark}-{at}">{escape(text)}</li>' for at, text in enumerate(reasons, start=1))
    return "\n".join(
        [
            f'<div class="table"><h3 id="{mark}">{escape(table.title)}</h3>',
            f'<div class="box" tabindex="0" role="region" aria-labelledby="{mark}">',
            f'<table aria-labelledby="{mark}">\n<thead><tr>{head}</tr></thead>\n{bodies}\n</table></div>',
            *([f'<ol class="why">{why}</ol>'] if why else []),
            *([f'<p class="quiet">{escape(table.note)}</p>'] if table.note else []),
            "</div>",
        ]
    )


def _row(row: list[str], prose: set[int], mark: str) -> str:
    first, *rest = row
    cells = [f'<th scope="row">{escape(first)}</th>']
    for at, text in enumerate(rest, start=1):
        cells.append(f"<td>{_words(text, mark)}</td>" if at in prose else f'<td class="number">{_amount(text)}</td>')
    apart = any(text.startswith("not comparable") for text in rest) or first.endswith(", not comparable")
    return f"<tr{' class=apart' if apart else ''}>{''.join(cells)}</tr>\n"


def _amount(text: str) -> str:
    mean, mark, half = text.partition(" ± ")
    return f"{escape(mean)} <small>± {escape(half)}</small>" if mark else escape(text)


def _words(text: str, mark: str) -> str:
    """A cell of prose; whether a published row may be compared is told by shape, word and colour."""
    said = re.fullmatch(r"(not comparable|comparable)(?: \[(\d+)\])?", text)
    if not said:
        return escape(text)
    verdict, number = said.groups()
    sign, kind = ("✓", "yes") if verdict == "comparable" else ("✗", "no")
    link = f' <a href="#{mark}-{number}">[{number}]</a>' if number else ""
    return f'<span class="{kind}">{sign} {verdict}</span>{link}'


def _list(notes: list[str]) -> str:
    return f"<ul>{''.join(_items(notes))}</ul>"


def _items(notes: list[str]) -> Iterator[str]:
    for note in notes:
        yield f"<li>{escape(note)}</li>\n"
