"""A report in the terminal, and as Markdown, CSV and LaTeX."""

import csv
import io
import re
from statistics import stdev

import pytest
from rich.console import Console

from tests.results.rows import whole
from vpeft.results import render


def test_the_csv_holds_every_number_and_reason(made):
    found = made(whole(seeds=(1, 2)))
    first, *others = csv.DictReader(io.StringIO(render.as_csv(found)))
    assert (first["kind"], first["method"], first["protocol"]) == ("ours", "lora", "adapter-plus")
    assert float(first["cifar100"]) == pytest.approx(30.5)
    assert float(first["cifar100 sd"]) == pytest.approx(stdev((30, 31)))
    assert float(first["task_mean"]) == pytest.approx(39.5)
    assert float(first["group_mean sd"]) == pytest.approx(stdev((30, 31)))
    noah = next(one for one in others if one["method"] == "lora8_noah")
    assert noah["compared"].startswith("not comparable")
    assert "NOAH paper row" in noah["source"]
    assert (float(noah["svhn"]), float(noah["task_mean"])) == (85.3, 72.25)


def test_markdown_is_whole_tables(made):
    text = render.markdown(made(whole()))
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {len(("method", "params", "seeds", "n", "sp", "st", "g", "t", "compared")) + 1, 22}
    assert "## VTAB-1k, protocol adapter-plus" in text


def test_latex_is_balanced_and_escaped(made):
    text = render.latex(made(whole(seeds=(1, 2))))
    for name in ("table", "tabular", "itemize"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    assert r"lora8\_noah [noah-family]" in text
    assert r"$\pm$" in text
    assert not re.search(r"(?<!\\)[_#%&]", re.sub(r"^%.*$| & ", "", text, flags=re.M).replace(r"\_", ""))


def test_the_terminal_shows_tables_reasons_and_notes(made):
    console = Console(width=200, record=True, file=io.StringIO())
    render.terminal(made(whole()), console)
    text = console.export_text()
    assert "protocol adapter-plus" in text
    (number,) = re.findall(r"lora8_noah \[noah-family\] +not comparable \[(\d)\]", text)
    assert re.search(rf"^\[{number}\] theirs is the best epoch on the test split; normalisation: ours", text, re.M)
    assert "- lora8_noah (noah-family): printed 74.5" in text


def test_a_narrow_terminal_cuts_the_columns_and_no_number(made):
    found = made(whole(seeds=(1, 2)))
    for width in range(70, 90):
        console = Console(width=width, record=True, file=io.StringIO())
        render.terminal(found, console)
        text = console.export_text()
        assert all(f"{30.5 + number:.2f} ± 0.71" in text for number in range(19))
        assert "…" not in text
