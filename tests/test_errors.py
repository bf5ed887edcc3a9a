import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests import errors

SOURCE = textwrap.dedent(
    """
    def check(size, parser=None):
        if size < 0:
            raise ValueError(f"size is {size}; it is 0 or more.")
        if size > 9:
            parser.error(f"--size {size} is too large; give 9 or less.")
        try:
            return 1 / size
        except ZeroDivisionError:
            raise
    """
)


def test_every_place_that_tells_an_error_is_listed_and_one_that_hands_on_is_not():
    assert dict(errors.sites("a.py", SOURCE)) == {
        ("a.py", 4): "ValueError(f'size is {size}; it is 0 or more.')",
        ("a.py", 6): "f'--size {size} is too large; give 9 or less.'",
    }


def test_an_error_is_noted_with_its_words_and_its_test_and_raised_all_the_same(monkeypatch):
    class Parser:
        said = ""

        def error(self, message):
            self.said = message

    monkeypatch.setattr(errors, "seen", errors.defaultdict(dict))
    names: dict[str, Any] = {"_note_error": errors.note}
    exec(compile(errors.noting(SOURCE, "a.py"), "a.py", "exec"), names)
    check: Any = names["check"]
    with pytest.raises(ValueError, match=r"^size is -1; it is 0 or more\.$"):
        check(-1)
    parser = Parser()
    check(10, parser)

    assert parser.said == "--size 10 is too large; give 9 or less."
    test = "tests/test_errors.py::test_an_error_is_noted_with_its_words_and_its_test_and_raised_all_the_same"
    assert errors.seen == {
        ("a.py", 4): {"size is -1; it is 0 or more.": test},
        ("a.py", 6): {parser.said: test},
    }


def test_the_list_marks_what_no_test_saw():
    places = dict(errors.sites("a.py", SOURCE))
    text = errors.listing(places, {("a.py", 4): {"size is -1; it is\n0 or more.": "test_size"}})

    assert text.startswith("2 places, 1 seen by a test.\n")
    assert (
        "- 4: `ValueError(f'size is {size}; it is 0 or more.')`\n  - size is -1; it is 0 or more. (test_size)" in text
    )
    assert "- 6: `f'--size {size} is too large; give 9 or less.'` **no test**" in text


def test_the_places_of_the_project_are_found():
    files = {Path(file) for file, _ in errors.places()}
    assert {Path("vpeft/config.py"), Path("tools/train.py")} & files
    assert {file.parts[0] for file in files} == set(errors.FOLDERS)
