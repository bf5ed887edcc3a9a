"""tools/bench.py: its commands, and what it says of wrong ones."""

import json

from tests.bench.test_tables import data


def test_methods_are_measured_into_a_file_and_shown(tool, tmp_path):
    file = tmp_path / "found.json"
    words = ("--backbone", "test_vit.r160_in1k", "--batch", 2, "--threads", 1, "--rounds", 1)
    ended = tool("bench", "methods", file, *words, "--measure", "time", "--cases", "linear")
    assert ended.code == 0, ended.err
    assert "| linear |" in ended.out
    ended = tool("bench", "methods", file, *words, "--measure", "inference", "--cases", "linear")
    assert ended.code == 0, ended.err
    assert {"time", "inference"} <= set(json.loads(file.read_text()))


def test_a_file_is_shown_and_drawn(tool, tmp_path):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(data()))
    ended = tool("bench", "show", file, "--parts", "limits", "--picture", tmp_path / "a.svg")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("| case | limit / full |")
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_wrong_input_is_one_sentence(tool, tmp_path):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(data()))
    for words, said in (
        (("methods", file, "--cases", "lora"), "there are no cases lora; there are full, linear"),
        (("methods", file, "--measure", "speed"), "--measure: there is no speed; there are memory, time, inference"),
        (("show", file, "--parts", "growth"), f"{file} has no table growth; it has about, steps"),
        (("show", tmp_path / "none.json"), "No such file"),
        (("curves", file, "--axes", "width"), "there is no axis width"),
        (("methods", file), f"{file} was measured with backbone vit, batch 8"),
    ):
        ended = tool("bench", *words)
        assert ended.code == 2
        assert said in ended.err, ended.err
        assert len(ended.err.splitlines()) == 1


def test_help_needs_nothing_heavy(tool):
    ended = tool("bench", "methods", "--help")
    assert ended.code == 0
    assert "--measure" in ended.out
