"""Growth beside theory, and epochs with cached features."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from vpeft.bench import curve_tables, curves, epochs
from vpeft.bench.curves import Shape
from vpeft.bench.record import Record, read

TINY = Shape(image_size=32, patch=8, batch=2, depth=3, dim=32, heads=2, prompts=2, rank=4, threads=1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(curves, "AXES", {"batch": (1, 2), "depth": (2, 3), "rank": (1, 4), "prompts": (1, 3)})


@pytest.mark.parametrize("method", curves.METHODS)
def test_theory_counts_the_operations_that_torch_does(method):
    counted = curves._counted(curves.Step(curves.Setting("", 2, threads=1), TINY.spec(method), TINY.body()))
    assert counted["operations"] == pytest.approx(curves.operations(method, TINY), rel=0.1)


def test_theory_is_linear_in_batch_and_depth_and_attention_quadratic_in_tokens():
    for method in curves.METHODS:
        one, two = (curves.operations(method, replace(TINY, batch=batch)) for batch in (1, 2))
        assert two == 2 * one
        three, six, nine = (curves.operations(method, replace(TINY, depth=depth)) for depth in (3, 6, 9))
        assert nine - six == pytest.approx(six - three)
        rising = [curves.operations(method, replace(TINY, image_size=8 * side)) for side in (8, 16, 32)]
        assert 4 < rising[1] / rising[0] < rising[2] / rising[1] < 16
    assert curves.memory("lora", replace(TINY, depth=6)) == 2 * curves.memory("lora", TINY)
    assert curves.memory("linear", replace(TINY, depth=6)) == curves.memory("linear", TINY)


def test_every_axis_is_written_with_the_methods_that_have_it(tmp_path, small):
    record = Record(tmp_path / "c.json", "curves", TINY)
    curves.measure(TINY, ["batch", "depth", "rank", "prompts"], curves.METHODS, 2, record, lambda text: None)
    found = read(record.path)
    assert list(found["curves"]) == ["batch", "depth", "rank", "prompts"]
    of = {axis: {one["method"] for one in curve["points"]} for axis, curve in found["curves"].items()}
    assert of["batch"] == set(curves.METHODS)
    assert (of["rank"], of["prompts"]) == ({"lora", "adaptformer"}, {"vpt"})
    assert all(len(one["seconds"]) == 2 for curve in found["curves"].values() for one in curve["points"])
    one, two = (one for one in found["curves"]["batch"]["points"] if one["method"] == "full")
    assert two["operations"] == 2 * one["operations"]
    assert two["memory"] > one["memory"]
    made = curve_tables.parts(found)
    assert len(made["growth"].splitlines()) == 2 + 5 + 5 + 2 + 1
    assert "| batch: 1 to 2 | full | 17 to 17 | 2.00 | 2.00 |" in made["growth"]
    assert len(made["points"].splitlines()) == 2 + 2 * (5 + 5 + 2 + 1)
    drawn = curve_tables.drawing(found)
    assert drawn == curve_tables.drawing(found)
    ElementTree.fromstring(drawn)


def test_what_has_no_curve_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no axis width; there are image_size"):
        curves.check(["width"], [])
    with pytest.raises(ValueError, match="there is no method dora; there are full"):
        curves.check([], ["dora"])


def test_epochs_are_of_whole_runs_with_the_cache_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "fresh", lambda run, *arguments: run(*arguments))
    setting = epochs.Epochs("test_vit", 32, images=8, batch=4, epochs=2, threads=1)
    record = Record(tmp_path / "e.json", "epochs", setting)
    epochs.measure(setting, 1, record, lambda text: None)
    found = read(record.path)
    assert {way: len(values) for way, values in found["epochs"][0]["seconds"].items()} == {"without": 1, "with": 1}
    assert epochs.parts(found)["epochs"].splitlines()[2].startswith("| 1 |")


def test_one_epoch_is_too_few(tmp_path):
    record = Record(tmp_path / "e.json", "epochs", epochs.Epochs(epochs=1))
    with pytest.raises(ValueError, match="two epochs of one batch are the least"):
        epochs.measure(epochs.Epochs(epochs=1), 1, record, lambda text: None)
