"""Tables of ranks, calibration and cost."""

import pytest

from tests.results.suites import METHODS, embedded, suite


def table(found, start, section=0):
    (one,) = [table for table in found.sections[section].tables if table.title.startswith(start)]
    return one


def cells(table):
    return {line[0]: dict(zip(table.columns[1:], line[1:], strict=True)) for part in table.parts for line in part}


def test_ranks_are_over_tasks_by_hand(made):
    rows = suite(["svhn", "dtd", "kitti"], {name: METHODS[name] for name in ("lora", "vpt")}, seeds=(1, 2))
    for one in rows:  # lora wins two tasks of three
        better = (one["method"][0]["name"] == "lora") == (one["task"] != "kitti")
        one["test"]["accuracy"] = 0.6 if better else 0.4
    ranks = cells(table(made(rows), "Mean rank over 3 tasks"))
    assert ranks == {
        "lora": {"mean rank": "1.33", "best on": "2 of 3", "mean accuracy": "53.33"},
        "vpt": {"mean rank": "1.67", "best on": "1 of 3", "mean accuracy": "46.67"},
    }


def test_the_test_is_stated_with_its_conditions(made):
    note = table(made(suite()), "Mean rank").note
    assert "only methods with all of these tasks take part" in note
    assert "Friedman's test over 8 methods and 19 tasks: chi-squared = " in note
    assert "with 7 and 126 degrees of freedom, p < 0.0001. Two methods differ at the 5 % level" in note
    assert "by 2.41 or more (Nemenyi)." in note  # 3.031 sqrt(8 * 9 / (6 * 19))
    assert "rough" not in note
    assert "The approximation is good above 5 methods and 10 tasks; here it is rough." in (
        table(made(embedded()), "Mean rank").note
    )


def test_calibration_is_a_mean_over_tasks_of_means_over_seeds(made):
    rows = suite(["svhn", "dtd"], {"lora": METHODS["lora"]}, seeds=(1, 2))
    for one, ece in zip(rows, (0.01, 0.03, 0.05, 0.07), strict=True):
        one["test"]["ece"] = ece
    assert cells(table(made(rows), "Expected calibration"))["lora"] == {
        "mean": "4.00",
        "dtd": "6.00 ± 12.71",
        "svhn": "2.00 ± 12.71",
    }


def test_a_task_without_calibration_is_counted(made):
    rows = suite(["svhn", "dtd"], {"lora": METHODS["lora"]}, seeds=(1,))
    rows[0]["test"]["ece"] = None
    del rows[1]["test"]["loss"]
    found = cells(table(made(rows), "Expected calibration"))["lora"]
    assert (found["mean"], found["svhn"]) == ("1 of 2", "-")


def test_costs_are_medians_by_machine(made):
    rows = suite(["svhn"], {"lora": METHODS["lora"]}, seeds=(1, 2, 3, 4))
    for one, seconds, threads in zip(rows, (0.1, 0.2, 0.9, 5.0), (2, 2, 2, 8), strict=True):
        one["time"] = {"step_seconds": seconds, "images_per_second": None, "wall_seconds": 60.0}
        one["device"] = {"name": "cpu", "processes": 1, "threads": threads}
        one["memory"] = {"peak_bytes": 100 * 2**20, "of": "the process"}
    costs = table(made(rows), "Time and memory")
    assert [line[1:] for part in costs.parts for line in part] == [
        ["cpu, 2 threads, batch 64, 32-true", "3", "200.0", "-", "100", "1.0"],
        ["cpu, 8 threads, batch 64, 32-true", "1", "5,000.0", "-", "100", "1.0"],
    ]
    assert "Memory is the peak of the process." in costs.note


@pytest.mark.parametrize(
    "broken", [{"time": None}, {"time": "fast"}, {"memory": None}, {"device": "cpu"}, {"versions": 3}]
)
def test_fields_of_another_form_are_not_measured(made, broken):
    rows = [one | broken for one in suite(["svhn", "dtd"], seeds=(1,))]
    assert made(rows).sections[0].counts == "8 methods, 2 tasks, 16 runs"
