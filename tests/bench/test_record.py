"""The file: what it says of where it was measured, and how further measurements join it."""

import json

import pytest

from vpeft.bench.record import Record, read
from vpeft.bench.setting import Setting

SETTING = Setting("test_vit", batch=2)


def test_it_says_when_where_and_under_what(tmp_path):
    record = Record(tmp_path / "a.json", "methods", SETTING)
    record.put("memory", "full", {"memory": 1})
    found = read(tmp_path / "a.json")
    assert found["kind"] == "methods"
    assert found["setting"]["batch"] == 2
    (run,) = found["runs"]
    assert {"torch", "timm", "python", "vpeft"} <= set(run["versions"])
    assert {"processor", "cores", "gpu", "load", "bf16"} <= set(run["machine"])
    assert run["date"].startswith("20")
    assert found["memory"]["full"] == {"memory": 1, "run": 0}


def test_further_measurements_join_and_a_case_measured_again_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    first = Record(path, "methods", SETTING)
    first.put("memory", "full", {"memory": 1})
    first.put("memory", "linear", {"memory": 2})
    first.fail("compile", "full", "no compiler")
    first.put("memory", "lora-qkv", {"memory": 4})
    first.fail("memory", "lora-qkv", "out of memory")  # the figure of an earlier state does not stay beside it
    again = Record(path, "methods", SETTING)
    again.head["date"] = "later"
    again.put("memory", "linear", {"memory": 3})
    again.put("compile", "full", {"compiling": 1.0})
    save = again.session("time", {"full": {"forward": [1.0]}})
    save()
    save()
    found = read(path)
    assert {case: one["memory"] for case, one in found["memory"].items()} == {"full": 1, "linear": 3}
    assert [one["run"] for one in found["memory"].values()] == [0, 1]
    assert found["failed"]["compile"] == {}
    assert len(found["time"]) == 1
    assert len(found["runs"]) == 2


def test_another_setting_or_kind_is_refused(tmp_path):
    path = tmp_path / "a.json"
    Record(path, "methods", SETTING).save()
    with pytest.raises(ValueError, match=r"measured with batch 2, and here it is batch 4\. Give another file"):
        Record(path, "methods", Setting("test_vit", batch=4))
    with pytest.raises(ValueError, match="holds methods, not curves; give another file"):
        Record(path, "curves", SETTING)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"setting": {}}), "\udcff"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"not a file of tools/bench\.py"):
        read(path)
