"""Where rows come from: code, versions, searches, and what of a suite holds."""

from tests.results.rows import lines, row
from tests.results.suites import METHODS, suite
from tests.results.test_measures import cells, table


def of_suite(rows, code="0.1.0+aaaa", method=None):
    """The rows as members of a suite."""
    for one in rows:
        name = method or one["method"][0]["name"]
        one["suite"] = {"member": one["id"], "method": name, "phase": "final", "point": {}, "code": code}
        one |= {"tuning": None, "id": f"{one['id']} {name} {one['optim']['lr']}"}
    return rows


def two(**changes):
    return suite(["svhn", "dtd"], {"lora": METHODS["lora"], "vpt": METHODS["vpt"]}, (1, 2), **changes)


def test_one_code_and_one_version_are_told_once(made):
    found = made(two())
    origin = cells(table(found, "Where the rows"))["lora"]
    assert origin == {
        "runs": "4",
        "tuned": "no",
        "code": "1a2b3c4d5e",
        "devices": "cpu",
        "ended": "2026-11-11 to 2026-11-12",
    }
    notes = found.sections[0].notes
    assert "Versions: python 3.11.7, vpeft 0.1.0, torch 2.13.0+cpu, timm 1.0.31." in notes
    assert "Commits: 1a2b3c4d5e." in notes
    assert not any("changed" in note for note in notes)


def test_mixed_code_and_versions_are_counted(made):
    rows = two()
    rows[0] |= {"git": "f" * 40 + "-dirty", "versions": {"python": "3.12.1", "torch": "2.13.0+cpu"}}
    notes = made(rows).sections[0].notes
    assert any(
        note.startswith("The code changed between these runs: ") and "ffffffffff-dirty (1)" in note for note in notes
    )
    assert "1 of 8 runs were made by code that differed from its commit." in notes
    (versions,) = [note for note in notes if note.startswith("Versions")]
    assert "python 3.12.1 (1), 3.11.7 (7)" in versions or "python 3.11.7 (7), 3.12.1 (1)" in versions
    assert "torch 2.13.0+cpu," in versions


def test_rows_without_provenance_say_so(made):
    origin = cells(table(made([row()]), "Where the rows"))["lora"]
    assert (origin["code"], origin["devices"], origin["tuned"]) == ("not recorded", "not recorded", "no")


def test_a_suite_names_its_methods_by_their_configs(made):
    deep = of_suite(suite(["svhn", "dtd"], {"vpt": METHODS["vpt"]}, (1,)), method="vpt_deep")
    shallow = suite(["svhn", "dtd"], {"vpt": ({"prompts": 5, "deep": False}, 10, 5.0, 1, 1)}, (1,))
    shallow[0]["optim"] = shallow[0]["optim"] | {"lr": 0.5}  # a search chose another rate for one of the tasks
    shallow = of_suite(shallow, method="vpt_shallow")
    for one in shallow:
        chosen = {"optim.lr": one["optim"]["lr"]}
        one["tuning"] = {
            "grid": {"optim.lr": [0.5, 5.0]},
            "seed": 1,
            "chosen": chosen,
            "val_accuracy": 0.6,
            "members": [],
        }
    found = made([*deep, *shallow])
    assert [name for name in lines(found) if "[" not in name] == ["vpt_deep", "vpt_shallow"]
    assert next(iter(lines(made([*deep, *shallow], methods=["vpt_shallow"])))) == "vpt_shallow"


def test_a_suite_that_chose_nothing_is_not_mixed_with_what_it_did_under_other_settings(made):
    rows = of_suite(suite(["svhn", "dtd"], {"vpt": METHODS["vpt"]}, (1,)))
    rows[0]["optim"] = rows[0]["optim"] | {"lr": 0.5}  # the config was changed before the second task
    names = [name for name in lines(made(rows)) if "[" not in name]
    assert names == ["vpt (optim.lr 0.001)", "vpt (optim.lr 0.5)"]


def test_of_a_place_in_the_suite_the_later_run_holds(made):
    old = of_suite(suite(["svhn"], {"lora": METHODS["lora"]}, (1,), optim__lr=0.1))
    new = of_suite(suite(["svhn"], {"lora": METHODS["lora"]}, (1,), optim__lr=0.2))
    new[0]["test"]["accuracy"] = 0.25
    found = made([*old, *new])
    assert lines(found, 1)["lora"] == ["1", "25.00"]
    (note,) = found.notes
    assert note.endswith("results.jsonl: left out, because their place in the suite was run again: 1 of 2 rows.")


def test_rows_of_different_code_are_not_mixed(made):
    old = of_suite(suite(["svhn"], {"lora": METHODS["lora"]}, (1,)))
    new = of_suite(suite(["dtd"], {"lora": METHODS["lora"]}, (1,)), code="0.1.0+bbbb")
    found = made([*old, *new])
    assert [name for name in lines(found) if "[" not in name] == ["lora (code 0.1.0+aaaa)", "lora (code 0.1.0+bbbb)"]
    assert any("The code changed between these runs: " in note for note in found.sections[0].notes)


def test_what_a_search_chose_is_a_table(made):
    rows = of_suite(two())
    for one in rows:
        if one["method"][0]["name"] == "lora":
            rate = 0.001 if one["task"] == "dtd" else 0.005
            one["optim"] = one["optim"] | {"lr": rate}
            one["tuning"] = {
                "grid": {"optim.lr": [0.001, 0.005]},
                "seed": 1,
                "chosen": {"optim.lr": rate},
                "val_accuracy": 0.5,
                "members": [{}, {}],
            }
    found = made(rows)
    chosen = table(found, "Settings chosen on val200: optim.lr")
    assert cells(chosen) == {"lora": {"dtd": "lr 0.001", "svhn": "lr 0.005"}}
    assert chosen.note.startswith("The best of 2 points of the grid on val200")
    assert {name: line["tuned"] for name, line in cells(table(found, "Where")).items()} == {"lora": "yes", "vpt": "no"}
    assert any("Some of these runs were tuned" in note for note in found.sections[0].notes)


def test_a_search_of_another_form_is_still_a_search(made):
    rows = [one | {"tuning": "by hand"} for one in two()]
    found = made(rows)
    assert {line["tuned"] for line in cells(table(found, "Where")).values()} == {"yes"}
