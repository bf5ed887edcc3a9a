"""published.yaml: its form, its sums, and that every row of VTAB-1k is understood."""

import re
from statistics import fmean

import pytest

from vpeft import methods, protocols
from vpeft.results import published
from vpeft.results.averages import GROUPS, TASKS, averages, tasks_of
from vpeft.yaml_file import read_yaml

ENTRIES = published.read_published()
VTAB = [entry for entry in ENTRIES if entry["benchmark"] in published.BENCHMARKS]
PER_TASK = [entry for entry in VTAB if "per_task" in entry]
TEXTS = ("method", "benchmark", "backbone", "head", "metric", "source")
METRICS = {
    "acc",
    "acc_group_mean",
    "acc_group_mean_printed",
    "acc_group_mean_reeval",
    "acc_task_mean",
    "acc_task_mean_best_test_epoch",
}


def name(entry):
    return f"{entry['method']}-{entry['metric']}"


def find(method, family):
    (row,) = (row for row in published.load() if (row.method, row.family) == (method, family))
    return row


def test_every_entry_has_the_form_that_the_header_states():
    assert len(ENTRIES) == 549
    for entry in ENTRIES:
        assert set(entry) - {"groups", "per_task"} == {*TEXTS, "protocol", "value", "params_m", "confidence"}, entry
        assert all(isinstance(entry[key], str) and entry[key] for key in TEXTS), entry
        assert isinstance(entry["protocol"], str), entry
        assert entry["protocol"] or entry["benchmark"] not in published.BENCHMARKS, entry
        assert isinstance(entry["value"], int | float), entry
        assert entry["params_m"] is None or entry["params_m"] >= 0, entry
        assert re.fullmatch(r"[CLPVKIFM]\??", entry["confidence"]), entry


def test_every_entry_of_vtab_is_a_percentage_of_a_known_kind():
    for entry in VTAB:
        assert entry["metric"] in METRICS
        assert all(0 < value < 100 for value in [entry["value"], *entry.get("per_task", [])]), entry
        assert set(entry.get("groups", GROUPS)) == set(GROUPS)


def test_no_number_is_there_twice():
    keys = [(entry["method"], entry["backbone"], entry["metric"], entry["protocol"], entry["source"]) for entry in VTAB]
    assert len(keys) == len(set(keys))


def test_the_tasks_are_in_the_order_of_the_papers():
    assert (*tasks_of("natural"), *tasks_of("specialized"), *tasks_of("structured")) == TASKS
    assert (TASKS[0], TASKS[7], TASKS[11], TASKS[18]) == ("cifar100", "patch_camelyon", "clevr_count", "smallnorb_ele")
    assert len(TASKS) == len(set(TASKS)) == 19


@pytest.mark.parametrize("entry", PER_TASK, ids=name)
def test_stated_means_are_those_of_the_per_task_numbers(entry):
    found = averages(dict(zip(TASKS, entry["per_task"], strict=True)))
    for group in GROUPS:
        assert entry["groups"][group] == pytest.approx(found.groups[group], abs=0.0051)
    assert entry["value"] == pytest.approx(found.group_mean, abs=0.0051)
    (task_mean,) = (
        other["value"]
        for other in VTAB
        if other["metric"] == "acc_task_mean" and all(other[key] == entry[key] for key in ("method", "source"))
    )
    assert task_mean == pytest.approx(found.task_mean, abs=0.0051)


@pytest.mark.parametrize(
    "entry",
    [e for e in VTAB if "groups" in e and "printed" not in e["metric"]],
    ids=lambda e: name(e) + e["source"][:3],
)
def test_the_mean_of_the_stated_groups_is_the_stated_mean(entry):
    assert entry["value"] == pytest.approx(fmean(entry["groups"].values()), abs=0.011)


def test_known_inconsistencies_are_notes_and_the_numbers_stay():
    noted = {
        (row.method, note) for row in published.load() for note in row.notes if "its per-task row averages" in note
    }
    assert {method for method, _ in noted} == {"lora8_noah", "repadapter_readme", "repadapter_attn_readme"}
    assert ("lora8_noah", "printed 74.5, its per-task row averages 74.60") in noted
    assert ("repadapter_readme", "printed 77.4, its per-task row averages 77.15") in noted
    assert ("repadapter_readme", "structured printed 63.29, its per-task row averages 62.88") in noted
    assert ("repadapter_attn_readme", "printed 77.12, its per-task row averages 77.41") in noted
    assert find("lora8_noah", "noah-family").averages.group_mean == 74.60
    printed = next(e for e in VTAB if e["method"] == "lora8_noah" and e["metric"] == "acc_group_mean_printed")
    assert printed["value"] == 74.5
    assert any("look swapped" in note for note in find("repadapter_readme", "not recorded").notes)
    assert any("64.4 in NOAH" in note for note in find("linear", "paper-vpt").notes)
    assert any("CIFAR 84.0 moves the mean" in note for note in find("snf", "not recorded").notes)


def test_a_printed_mean_that_is_only_rounded_is_no_inconsistency():
    row = find("fact_tk", "noah-family")
    assert row.averages.group_mean == 75.55
    assert not any("printed" in note for note in row.notes)


def test_every_row_is_understood():
    known = published.read_families()
    assert {entry["method"] for entry in VTAB} == set(known["methods"])
    assert {entry["backbone"] for entry in VTAB} == set(known["backbones"])
    for family in known["families"].values():
        for start in family["begins"]:
            assert any(entry["protocol"].startswith(start) for entry in VTAB), start
    for entry in VTAB:
        published.family_of(entry["protocol"])


def test_counterparts_are_methods_with_such_options():
    for spec in published.read_families()["methods"].values():
        if spec is not None:
            methods.check(spec)


def test_families_named_as_protocols_are_those_protocols():
    families = published.read_families()["families"]
    assert set(protocols.names()) <= set(families)
    for protocol in protocols.names():
        tree, family = read_yaml(protocols.file(protocol)), families[protocol]
        # `auto` is the backbone's own, 0.5 and 0.5 for both in21k ViTs.
        assert tree["normalization"].replace("auto", "inception") == family["normalization"]
        for key in ("resize", "interpolation", "split", "augment"):
            assert tree["data"][key] == family[key]
        # Nothing here is chosen on test, whatever the papers did.
        assert tree["train"]["selection"] == "last"


def test_what_a_text_says_is_what_its_family_says():
    words = {
        "imagenet norm": ("normalization", "imagenet"),
        "0.5/0.5 norm": ("normalization", "inception"),
        "unnormalised": ("normalization", "none"),
        "on the test set": ("selection", "best_test"),
        "best test epoch": ("selection", "best_test"),
        "no test-set early stopping": ("selection", "last"),
        "tfds tensors": ("lossy", False),
        "jpeg": ("lossy", True),
    }
    for entry in VTAB:
        family = published.family_of(entry["protocol"])
        if family == "not recorded":
            continue
        facts = published.read_families()["families"][family]
        for word, (key, value) in words.items():
            if word in entry["protocol"].lower():
                assert facts[key] == value, (entry["protocol"], key)


def test_values_from_memory_are_left_out():
    assert published.unverified() == ["fact_tt"]
    assert [row.family for row in published.load() if row.method == "fact_tt"] == [
        "osu-lessons",
        "osu-lessons, best epoch",
    ]


def test_vpt_shallow_and_deep_are_not_mixed_up():
    deep, shallow = find("vpt_deep", "paper-vpt"), find("vpt_shallow", "paper-vpt")
    assert deep.is_of([{"name": "vpt", "deep": True}])
    assert not deep.is_of([{"name": "vpt", "deep": False}])
    assert shallow.is_of([{"name": "vpt", "deep": False, "prompts": 3}])
    assert not deep.is_of([{"name": "vpt"}, {"name": "lora"}])
