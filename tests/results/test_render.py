"""A report in the terminal, and as Markdown and LaTeX."""

import io
import re

import pytest
from rich.console import Console

from tests.results.rows import row, whole
from tests.results.suites import suite
from vpeft.results import render


def test_markdown_is_whole_tables(made):
    text = render.markdown(made(whole()))
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    averages, tasks = (
        len(("method", "params", "seeds", "n", "sp", "st", "g", "t", "compared")),
        len(("method", "seeds")) + 19,
    )
    origin = len(("method", "runs", "tuned", "code", "devices", "ended"))
    assert set(widths) == {averages + 1, tasks + 1, origin + 1}
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
        assert all(f"{30.5 + number:.2f} ± 6.35" in text for number in range(19))
        assert "…" not in text


def test_markdown_has_the_figures_beside_it(made, tmp_path):
    found = made(suite(seeds=(1, 2)))
    links = render.pictures(found, tmp_path / "docs" / "figures", tmp_path / "docs" / "report.md")
    text = render.markdown(found, links)
    shown = re.findall(r"^!\[.+\]\((.+)\)$", text, re.M)
    assert shown == [f"figures/1-{name}.svg" for name in ("parameters", "time-1", "memory-1", "means", "ranks")]
    assert all((tmp_path / "docs" / link).read_text().startswith("<svg xmlns=") for link in shown)
    assert "![" not in render.markdown(found)


def test_what_a_row_says_is_no_markup(made):
    text = render.markdown(made([row(method=[{"name": "<script>alert(1)</script>"}], git="a|b")]))
    assert "<script" not in text
    assert "a\\|b" in text
    searched = row() | {"tuning": {"grid": {"<img src=x>": [1]}, "chosen": {"<img src=x>": 1}, "members": []}}
    assert "<img" not in render.markdown(made([searched]))


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("[x](http://a)", "\\[x\\](http://a)"),
        ("![x](y)", "!\\[x\\](y)"),
        ("`code`", "\\`code\\`"),
        ("**bold** _it_ ~~gone~~", "\\*\\*bold\\*\\* \\_it\\_ \\~~gone\\~~"),
        ("a\\|b", "a\\\\\\|b"),
        ("# x", "\\# x"),
        ("- x\n# y", "\\- x # y"),
        ("1. x", "1\u200b. x"),
        ("oxford_flowers102", "oxford_flowers102"),
    ],
)
def test_what_a_row_says_is_no_markup_of_markdown(made, said, written):
    text = render.markdown(made([row(method=[{"name": said}])]))
    assert f"\n| {written} |" in text
