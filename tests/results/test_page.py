"""The page: whole, alone, and made of words only; and as a browser shows it."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.results.browser import Browser
from tests.results.rows import row, whole
from tests.results.suites import METHODS, embedded, suite
from vpeft.results import page

COMMAND = "python tools/report.py runs --html report.html"
EVIL = '<script>document.title="ran"</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all that were opened are closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(made):
    text = page.html(made([*suite(), *embedded()]), COMMAND)
    tags = Tags(text).found
    names = [tag for tag, _ in tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert not any(name.startswith("on") or name == "src" for _, attributes in tags for name in attributes)
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text


def test_the_page_has_every_table_figure_note_and_reason(made):
    found = made(suite())
    text = page.html(found, COMMAND)
    (section,) = found.sections
    assert text.count("<table ") == len(section.tables)
    assert text.count("<figure ") == len(section.figures) == 5
    assert text.count("✓ comparable") == 2
    assert text.count("✗ not comparable") == sum(
        "not comparable" in line[1] for part in section.tables[0].parts for line in part
    )
    assert "theirs is the best epoch on the test split; normalisation: ours inception, theirs imagenet" in text
    assert "lora8_noah (noah-family): printed 74.5, its per-task row averages 74.60." in text
    assert COMMAND in text


def test_the_page_is_the_same_twice(made):
    assert page.html(made(suite()), COMMAND) == page.html(made(suite()), COMMAND)


def test_what_a_row_says_is_not_run(made):
    rows = suite(seeds=(1, 2), methods={EVIL: METHODS["lora"], "vpt": METHODS["vpt"], "ssf": METHODS["ssf"]})
    for one in rows:
        one |= {"git": EVIL, "device": one["device"] | {"name": EVIL}, "versions": {EVIL: EVIL}, "tuning": {EVIL: EVIL}}
    text = page.html(made([*rows, row(EVIL, data__format="folder")]), f"{COMMAND} {EVIL}")
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Tags(text).found)


@pytest.mark.parametrize(
    "rows",
    [[row()], whole(), [row("svhn", method=[{"name": "a"}]), row("dtd", method=[{"name": "b"}])]],
    ids=["one row", "one method", "nothing in common"],
)
def test_little_is_a_page_too(made, rows):
    assert "<table " in page.html(made(rows), COMMAND)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def many():
    methods = {f"method_{at}": ({"rank": at}, 1000 + 999 * at**2, at % 13, 900 + at, 500 + 9 * at) for at in range(60)}
    return embedded(methods, seeds=(0, 1))


PAGES = {
    "suites": lambda: [*suite(), *embedded()],
    "one row": lambda: [row()],
    "sixty methods": many,
    "words": lambda: suite(seeds=(1,), methods={EVIL: METHODS["lora"], "x" * 300: METHODS["vpt"], "s": METHODS["ssf"]}),
}
WIDTHS = "[innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth]"
OVERLAPS = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text.name')].map(text => text.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2));
}).length"""
OUTSIDE = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1;
  }).map(text => text.textContent);
})"""


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_page(made, browser, tmp_path, name):
    found = made(PAGES[name]())
    file = tmp_path / "report.html"
    file.write_text(page.html(found, COMMAND), encoding="utf-8")
    tables = sum(len(section.tables) for section in found.sections)
    figures = sum(len(section.figures) for section in found.sections)
    for width, dark in ((400, False), (1200, True)):
        browser.said.clear()
        browser.open(file, width, dark)
        assert browser.said == []
        assert browser.ask(WIDTHS) == [width] * 3
        assert browser.ask("document.title") == "Results"
        assert browser.ask("document.querySelectorAll('table').length") == tables
        assert browser.ask("document.querySelectorAll('figure svg').length") == figures
        assert browser.ask("Math.min(...[...document.querySelectorAll('svg')].map(e => e.clientHeight), 999)") > 80
        assert browser.ask(OVERLAPS) == 0
        assert browser.ask(OUTSIDE) == []
        ground = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(15, 18, 26)") == dark
    browser.shoot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 1200
        assert len(shot.convert("RGB").resize((120, 120)).getcolors(14400)) > 100, "there is something to see"


def test_a_figure_alone_has_its_colours(made, browser, tmp_path):
    (section,) = made(embedded()).sections
    for figure in section.figures:
        file = tmp_path / f"{figure.name}.svg"
        file.write_text(figure.file(), encoding="utf-8")
        browser.said.clear()
        for dark, colour in ((False, "rgb(255, 255, 255)"), (True, "rgb(23, 27, 36)")):
            browser.open(file, 800, dark)
            assert browser.ask("getComputedStyle(document.querySelector('.ground')).fill") == colour
        assert browser.said == []


def test_a_wrong_page_is_noticed(browser, tmp_path):
    """The checks above would fail if there were something to see."""
    file = tmp_path / "wrong.html"
    file.write_text(
        "<body><p style='width: 900px'>wide</p><script>console.error('no')</script><script src='x.js'></script>"
        "<figure><svg><text class='name' x='9' y='9'>one</text><text class='name' x='9' y='9'>two</text></svg></figure>"
    )
    browser.said.clear()
    browser.open(file, 400)
    assert browser.ask("document.documentElement.scrollWidth") > 400
    assert browser.ask(OVERLAPS) == 1
    assert any("x.js" in str(said) for said in browser.said)
    assert any("'no'" in str(said) for said in browser.said)
    browser.said.clear()
