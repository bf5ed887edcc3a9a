"""The page of settings: equal to what is committed, and whole."""

import re

import pytest

from vpeft import reference
from vpeft.kinds import KINDS
from vpeft.setting import schema

PAGE = reference.page()


def test_the_committed_page_is_what_the_settings_generate():
    text = (reference.ROOT / reference.FILE).read_text(encoding="utf-8")
    assert text == PAGE, "python tools/docs.py writes it anew"


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_kind_has_a_type_a_default_and_a_meaning(kind):
    section = PAGE.partition(f"## kind: {kind}\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+ \| .+ \| .+) \|$", section, flags=re.M))
    repeated = set(re.findall(rf"^### {kind}: ([\w.]+)\n\nAs in ", section, flags=re.M))
    assert [key for key in schema(KINDS[kind]) if key not in rows and key.rpartition(".")[0] not in repeated] == []


def test_a_section_that_is_repeated_leads_to_where_it_stands():
    headings = {found.replace(": ", "-").replace(".", "") for found in re.findall(r"^### (.+)$", PAGE, flags=re.M)}
    assert set(re.findall(r"As in \[.+?\]\(#(.+?)\)", PAGE)) <= headings


def test_writing_twice_changes_nothing(tmp_path):
    assert reference.write(tmp_path) == [reference.FILE]
    assert reference.write(tmp_path) == []
