"""A report for a spreadsheet."""

import csv
import io
from statistics import stdev

import pytest

from tests.results.rows import row, whole
from tests.results.suites import embedded, suite
from vpeft.data.tables import EMBEDDED
from vpeft.results import records


def table(found):
    return list(csv.DictReader(io.StringIO(records.as_csv(found.records))))


def test_the_csv_holds_every_number_and_reason(made):
    found = made(whole(seeds=(1, 2)))
    first, *others = table(found)
    assert (first["kind"], first["method"], first["protocol"]) == ("ours", "lora", "adapter-plus")
    assert float(first["cifar100"]) == pytest.approx(30.5)
    assert float(first["cifar100 sd"]) == pytest.approx(stdev((30, 31)))
    assert float(first["task_mean"]) == pytest.approx(39.5)
    # Student's t of one degree of freedom is 12.706 at 97.5 %.
    assert float(first["task_mean ci95"]) == pytest.approx(12.706 * stdev((30, 31)) / 2**0.5, rel=1e-4)
    assert float(first["group_mean sd"]) == pytest.approx(stdev((30, 31)))
    noah = next(one for one in others if one["method"] == "lora8_noah")
    assert noah["compared"].startswith("not comparable")
    assert "NOAH paper row" in noah["source"]
    assert (float(noah["svhn"]), float(noah["task_mean"])) == (85.3, 72.25)


def test_the_csv_has_calibration_time_and_memory(made):
    rows = suite(seeds=(1,))
    first = table(made(rows))[0]
    assert first["method"] == "adapter_plus"
    mine = [row for row in rows if row["method"][0]["name"] == "adapter_plus"]
    assert float(first["ece"]) == pytest.approx(100 * sum(row["test"]["ece"] for row in mine) / 19)
    assert float(first["svhn ece"]) == next(100 * row["test"]["ece"] for row in mine if row["task"] == "svhn")
    assert first["device"] == "cpu, 2 threads, batch 64, 32-true"
    assert 2.3 < float(first["step_seconds"]) < 2.6


def test_a_machine_has_no_number_where_there_are_two(made):
    rows = suite(seeds=(1, 2))
    for one in rows:
        one["device"] = one["device"] | {"threads": one["seed"]}
    assert {(line["device"], line["step_seconds"]) for line in table(made(rows)) if line["kind"] == "ours"} == {
        ("", "")
    }


def test_embedded_tasks_have_columns_and_averages_of_their_own(made):
    first = table(made(embedded()))[0]
    assert list(first)[9:13] == ["digits", "digits sd", "digits ci95", "digits ece"]
    tasks = [float(first[task]) for task in EMBEDDED]
    assert float(first["task_mean"]) == pytest.approx(sum(tasks) / 8)
    assert float(first["natural"]) == pytest.approx(sum(tasks[:3]) / 3)


@pytest.mark.parametrize("name", ["method", "seeds", "natural", "ece", "peak_bytes", "x sd", "task 'a'"])
def test_a_task_that_is_called_like_a_column_has_one_of_its_own(made, name):
    plain = table(made([row("mine", 0, 0.4), row("yours", 0, 0.6)]))[0]
    line = table(made([row(name, 0, 0.4), row("yours", 0, 0.6)]))[0]
    assert float(line[f"task '{name}'"]) == 40
    assert {key: line[key] for key in ("method", "seeds", "tasks", "natural", "ece", "peak_bytes", "setting")} == {
        key: plain[key] for key in ("method", "seeds", "tasks", "natural", "ece", "peak_bytes", "setting")
    }


def test_a_spreadsheet_computes_nothing_that_a_row_says(made):
    line = table(made([row("=1+1", 0, 0.4, method=[{"name": "=HYPERLINK(x)"}]), row("yours", 0, 0.6)]))[0]
    assert line["method"] == "'=HYPERLINK(x)"
    assert float(line["'=1+1"]) == 40
