"""Figures: what is drawn where, and when there is none."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.results.rows import row, whole
from tests.results.suites import METHODS, embedded, suite
from vpeft.results.scatter import Axis, Point, front, scatter


def figures(found, section=0):
    return {figure.name: figure for figure in found.sections[section].figures}


def parsed(figure):
    return ElementTree.fromstring(figure.file())


def marks(figure, kind):
    """Titles of the points of a kind."""
    space = "{http://www.w3.org/2000/svg}"
    return {
        group.find(f"{space}title").text.partition(":")[0]
        for group in parsed(figure).iter(f"{space}g")
        if any(shape.get("class") == kind for shape in group)
    }


def test_a_whole_suite_has_every_figure_and_each_is_well_formed(made):
    found = figures(made(suite()))
    assert list(found) == ["parameters", "time-1", "memory-1", "means", "ranks"]
    for figure in found.values():
        root = parsed(figure)
        assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
        assert root.get("role") == "img"
        assert all(name in figure.description for name in METHODS)


def test_the_front_is_filled_and_the_rest_is_not(made):
    figure = figures(made(suite()))["parameters"]
    assert marks(figure, "best") == {"linear", "vpt", "adapter_plus"}
    assert marks(figure, "beaten") == {"bitfit", "adaptformer", "lora", "ssf", "full"}
    assert marks(figure, "published") == {"adapter_plus_r8"}


def test_published_points_do_not_take_part_in_the_front():
    points = [Point(1.0, 50.0, "a"), Point(2.0, 60.0, "b"), Point(1.0, 90.0, "c", "published")]
    assert front(points) == [0, 1]


def test_zero_parameters_stand_left_of_the_logarithmic_axis():
    points = [Point(0.0, 50.0, "none"), Point(1e3, 60.0, "few"), Point(1e6, 70.0, "many")]
    body, hidden = scatter(points, Axis("parameters", str, logarithmic=True), "accuracy")
    places = [float(x) for x in re.findall(r'class="best" cx="([0-9.]+)"', body)]
    many, few, none = places[-3:]
    assert none < few < many
    assert hidden == 0


@pytest.mark.parametrize("costs", [(5.0, 5.0), (0.0, 0.0)])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_equal_points_are_drawn(costs, logarithmic):
    points = [Point(cost, 50.0, name) for cost, name in zip(costs, "ab", strict=True)]
    body, _ = scatter(points, Axis("cost", str, logarithmic), "accuracy")
    assert "nan" not in body
    assert body.count("<title>") == 2


def test_machines_have_figures_of_their_own(made):
    rows = suite(seeds=(1,))
    for one in rows:
        if one["method"][0]["name"] in ("lora", "vpt", "ssf"):
            one["device"] = {"name": "NVIDIA H100", "processes": 1, "threads": 8}
        if one["method"][0]["name"] == "ssf":
            one["packed"] = {"members": 4, "position": 0}
    found = figures(made(rows))
    titles = {name: figure.title for name, figure in found.items() if name.startswith("time")}
    assert titles == {
        "time-1": "Accuracy against step time: NVIDIA H100, 8 threads, batch 64, 32-true",
        "time-3": "Accuracy against step time: cpu, 2 threads, batch 64, 32-true",
    }
    assert "lora" in found["time-1"].description
    assert not re.search("lora|ssf", found["time-3"].description)


def test_rows_without_time_and_memory_have_no_such_figures(made):
    rows = suite(seeds=(1,))
    for one, change in zip(rows, [{"time": None}, {"memory": {}}, {"device": None}] * len(rows), strict=False):
        one |= change | {"time": {"step_seconds": None}, "memory": {"peak_bytes": None}}
    found = made(rows)
    assert list(figures(found)) == ["parameters", "ranks"]
    assert not any(table.title.startswith("Time") for table in found.sections[0].tables)


def test_one_seed_has_no_intervals_and_one_method_no_figures(made):
    assert "means" not in figures(made(suite(seeds=(1,))))
    assert figures(made(whole(seeds=(1, 2)))) == {}
    assert figures(made([row()])) == {}


def test_methods_without_a_task_in_common_are_not_drawn(made):
    found = made([row("svhn", method=[{"name": "lora"}]), row("dtd", method=[{"name": "vpt"}])])
    assert figures(found) == {}
    assert any("no task in common" in note for note in found.sections[0].notes)


def test_methods_that_lack_a_task_are_named_and_not_drawn(made):
    rows = [one for one in suite() if (one["task"], one["method"][0]["name"]) != ("svhn", "ssf")]
    figure = figures(made(rows))["parameters"]
    assert "Without methods that lack tasks: ssf." in figure.caption
    assert "ssf" not in figure.description


def test_sixty_methods_are_drawn_with_as_many_names_as_there_is_room_for(made):
    methods = {
        f"method_{number}": ({"rank": number}, 1000 + 37 * number, number % 13, 1000, 500) for number in range(60)
    }
    found = figures(made(embedded(methods, seeds=(0,))))
    assert len(marks(found["parameters"], "best") | marks(found["parameters"], "beaten")) == 60
    assert re.search(r"\d+ of 60 names have no room; the tables have them all\.", found["parameters"].caption)
    assert found["ranks"].body.count('class="hair"') == 60


def test_few_tasks_have_no_critical_difference_diagram(made):
    found = made(suite(["svhn", "dtd", "kitti", "dmlab"]))
    assert "ranks" not in figures(found)
    (table,) = [table for table in found.sections[0].tables if table.title.startswith("Mean rank")]
    assert "No test is made: it takes 3 methods and 5 tasks or more, and here are 8 and 4." in table.note


def test_without_a_difference_one_bar_joins_all(made):
    same = {name: ({"rank": at}, 1000, 5.0, 1000, 500) for at, name in enumerate(("one", "two", "three"))}
    rows = suite(methods=same, seeds=(0,))
    for at, one in enumerate(rows):
        one["test"]["accuracy"] = 0.5 + 0.01 * ((at + at // 3) % 3)
    figure = figures(made(rows))["ranks"]
    assert "No difference was found: one bar joins them all." in figure.caption
    assert figure.body.count('class="alike"') == 1
    assert 'class="bracket"' not in figure.body


def test_names_are_only_words(made):
    evil = '"><script>alert(1)</script>'
    rows = suite(seeds=(1,), methods={evil: METHODS["lora"], "vpt & co": METHODS["vpt"], "a<b": METHODS["ssf"]})
    for figure in figures(made(rows)).values():
        assert "<script" not in figure.file()
        parsed(figure)
