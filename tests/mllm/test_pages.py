"""Pages of the connectors: made from the code, equal to what is committed, and true about where a connector acts."""

import pytest

from mllm import pages
from mllm.connectors import CONNECTORS


@pytest.fixture(scope="module")
def built():
    return pages.built()


def test_the_committed_pages_are_what_the_code_generates(built):
    there = {path.relative_to(pages.ROOT): path.read_text() for path in (pages.ROOT / pages.FOLDER).iterdir()}
    stale = [str(path) for path, text in built.items() if there.get(path) != text]
    assert not stale, "python tools/docs.py writes them anew"
    assert set(there) == set(built)


def test_writing_twice_changes_nothing_and_pages_of_lost_connectors_go(built, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "built", lambda: built)
    assert len(pages.write(tmp_path)) == len(CONNECTORS) + 1
    gone = tmp_path / pages.FOLDER / "gone.md"
    gone.write_text("")
    assert pages.write(tmp_path) == [pages.FOLDER / "gone.md"]
    assert not gone.exists()


ROUTES = [
    f"another path for some positions of {role} (Layer.reroute), every layer" for role in ("q", "k", "v", "o", "mlp")
]
ACTS = {
    "mlp": [],
    "gated_xattn": ["tokens entering the layer (Layer.before), every layer"],
    "visual_expert": ["the positions that queries and keys turn by (Decoder.rotate_by)", *ROUTES],
}


@pytest.mark.parametrize("name", ACTS)
def test_where_a_connector_acts_is_recorded(name):
    assert pages.attached(name) == ACTS[name]


def test_zero_init_prompt_acts_in_the_last_layers():
    (line,) = pages.attached("zero_init_prompt")
    assert line.startswith("a second softmax in its attention (Layer.attend_also), ")


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_page_says_what_it_must(built, name):
    text = built[pages.FOLDER / f"{name}.md"]
    assert "```text\n\n```" not in text, "an equation"
    test = "](../../tests/mllm/connectors/test_"
    for part in ("```text\n", "## Where it attaches", "- parameters: ", "## Options", test, "arXiv"):
        assert part in text, part
    assert f"[{name}]({name}.md)" in built[pages.FOLDER / "index.md"]
