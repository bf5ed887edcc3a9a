"""Rows of many files: each once, repeats named, damage named with file and line."""

import json

import pytest

from tests.results.rows import lines, row, whole
from vpeft.results import append_row, report
from vpeft.results.setting import fingerprint


def test_a_row_that_is_there_twice_counts_once(made, tmp_path):
    rows = whole()
    found = made([*rows, *rows])
    assert lines(found)["lora"][2] == "1"
    assert found.notes == []


def test_of_a_repeated_run_the_last_counts_however_good(made):
    first, second = row(accuracy=0.9, date="2026-01-01"), row(accuracy=0.6, date="2026-01-02")
    assert fingerprint(first) == fingerprint(second)
    found = made([second | {"id": "b"}, first | {"id": "a"}])
    assert lines(found, 1)["lora"] == ["1", "60.00"]
    assert found.notes == [
        "lora on cifar100, seed 0: 2 runs under the same settings, of which the last counts (b, 2026-01-02), and their "
        "accuracies differ: 60.00, 90.00."
    ]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"task": "svhn"}, {"optim__lr": 1.0}, {"data__lossy": True}, {"method": [{"name": "ssf"}]}]
)
def test_the_fingerprint_changes_with_what_decides_the_number(changes):
    assert fingerprint(row(**changes)) != fingerprint(row())


def test_methods_without_options_are_told_apart(made):
    rows = [row(method=[{"name": name}], accuracy=value) for name, value in (("linear", 0.4), ("full", 0.6))]
    assert fingerprint(rows[0]) != fingerprint(rows[1])
    assert {name: cells[1] for name, cells in lines(made(rows), 1).items() if "[" not in name} == {
        "linear": "40.00",
        "full": "60.00",
    }


def test_runs_of_a_search_are_counted_and_left_out(made):
    found = made([*whole(), row() | {"test": None, "id": "a"}, row("dtd") | {"test": None, "id": "b"}])
    (note,) = found.notes
    assert note.endswith("results.jsonl: left out, because a search does not test them: 2 rows.")
    assert lines(found)["lora"][0] == "ours"


def test_the_fingerprint_does_not_change_with_place_and_time():
    elsewhere = row(accuracy=0.7, date="2027", train__accelerator="gpu", data__workers=4) | {"folder": "x", "git": "y"}
    assert fingerprint(elsewhere) == fingerprint(row())


def test_damaged_lines_are_named_with_file_and_line(tmp_path):
    file = tmp_path / "a" / "results.jsonl"
    append_row(file, row())
    with file.open("a") as opened:
        opened.write('{"id": "torn", "accu\n')
        opened.write(json.dumps({"id": "other"}) + "\n")
        opened.write(json.dumps(row(accuracy=77)) + "\n")
        opened.write(json.dumps(row() | {"method": "lora"}) + "\n")
    notes = report.build([tmp_path]).notes
    assert [note.partition(": ")[0] for note in notes] == [f"{file}, line {number}" for number in (2, 3, 4, 5)]
    assert notes[0].endswith("not a whole result row; it is left out.")
    assert notes[1].endswith("a result row without 'backbone'; it is left out.")
    assert notes[2].endswith("test accuracy is 77, not a fraction from 0 to 1; it is left out.")


@pytest.mark.parametrize(
    "changes",
    [
        *({"seed": "x"}, {"task": 3}, {"task": None}, {"method": [{"name": None}]}, {"method": []}),
        *({"preprocessing__resize": ["a"]}, {"parameters__method": float("inf")}),
    ],
)
def test_a_row_of_another_form_is_named_and_the_others_are_reported(changes, tmp_path):
    file = tmp_path / "results.jsonl"
    made = row(**{key: value for key, value in changes.items() if key not in ("seed", "task")})
    made |= {key: value for key, value in changes.items() if key in ("seed", "task")}
    file.write_text("".join(f"{json.dumps(one)}\n" for one in (row(), made)))
    found = report.build([tmp_path])
    (note,) = found.notes
    assert note.startswith(f"{file}, line 2: a result row ")
    assert note.endswith("it is left out.")
    assert lines(found, 1)["lora"] == ["1", "50.00"]


def test_what_is_no_finite_number_was_not_measured(tmp_path):
    made = row() | {"test": {"accuracy": 0.5, "ece": float("nan")}, "device": {"name": "cpu", "threads": float("inf")}}
    (tmp_path / "results.jsonl").write_text(json.dumps(made) + "\n")
    assert not any("calibration" in table.title for table in report.build([tmp_path]).sections[0].tables)


def test_several_files_and_folders_are_read_once_each(tmp_path):
    append_row(tmp_path / "a" / "results.jsonl", row("svhn"))
    append_row(tmp_path / "b" / "c" / "results.jsonl", row("dtd"))
    found = report.build([tmp_path, tmp_path / "a", tmp_path / "a" / "results.jsonl"])
    assert found.sections[0].tables[1].columns == ["method", "seeds", "dtd", "svhn"]
