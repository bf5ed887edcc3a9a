"""Runs beside published numbers: what is averaged, what is compared, and what a report refuses to say."""

import copy
import csv
import io
import json
import re
from statistics import fmean, stdev

import pytest
from rich.console import Console

from tests.runs import tiny_config, write_images
from vpeft import run
from vpeft.results import append_row, render, report, runs
from vpeft.results.averages import TASKS, averages, tasks_of

ROW = {
    "method": [{"name": "lora", "rank": 8, "targets": ["q", "v"]}],
    "protocol": {"name": "adapter-plus", "changed": {}},
    "backbone": {
        "name": "vit_base_patch16_224.orig_in21k",
        "pretrained": "auto",
        "image_size": [224, 224],
        "drop_path": 0.1,
        "weights": {"source": "hub", "origin": "orig_in21k", "sha256": "ab" * 32},
    },
    "head": {"init": "trunc_normal", "batch_norm": False},
    "preprocessing": {
        "normalization": {"name": "auto", "mean": [0.5] * 3, "std": [0.5] * 3},
        "resize": "squash",
        "interpolation": "bilinear",
        "augment": "none",
    },
    "data": {"format": "vtab-png", "lossy": False, "split": "train800val200", "batch_size": 64, "drop_last": True},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 100, "devices": 1},
    "selection": {"rule": "last", "epoch": 100, "val_accuracy": None},
    "parameters": {"method": 294_912, "head": 7690, "adopted": 0, "frozen": 85_798_656, "total": 86_101_258},
}


def row(task="cifar100", seed=0, accuracy=0.5, **changes):
    """A result row; `data__split="train800"` changes row["data"]["split"]."""
    made = copy.deepcopy(ROW)
    for key, value in changes.items():
        *path, leaf = key.split("__")
        level = made
        for part in path:
            level = level[part]
        level[leaf] = value
    name = f"{task}-{seed}-{len(changes)}-{accuracy}-{sorted(changes.items(), key=str)}"
    return {"id": name, "date": "2026-01-01", **made, "task": task, "seed": seed, "test": {"accuracy": accuracy}}


def whole(seeds=(0,), shift=0.0, **changes):
    """Rows of all nineteen tasks: 0.30, 0.31, ..., a hundredth more a seed."""
    return [
        row(task, seed, 0.3 + 0.01 * number + 0.01 * index + shift, **changes)
        for number, task in enumerate(TASKS)
        for index, seed in enumerate(seeds)
    ]


@pytest.fixture
def made(tmp_path):
    """A function that writes rows and reports on them."""

    def build(rows, **words):
        file = tmp_path / "results.jsonl"
        file.unlink(missing_ok=True)
        for one in rows:
            append_row(file, one)
        return report.build([file], **words)

    return build


def lines(found, table=0, section=0):
    """Rows of a table by their first cell."""
    return {line[0]: line[1:] for part in found.sections[section].tables[table].parts for line in part}


def verdicts(found):
    return {name: cells[0] for name, cells in lines(found).items()}


def test_both_averages_by_hand():
    values = {task: float(number) for number, task in enumerate(TASKS)}
    found = averages(values)
    natural, specialized, structured = fmean(range(7)), fmean(range(7, 11)), fmean(range(11, 19))
    assert found.groups == {"natural": natural, "specialized": specialized, "structured": structured}
    assert found.group_mean == pytest.approx((natural + specialized + structured) / 3)
    assert found.task_mean == fmean(range(19)) != found.group_mean


def test_one_missing_task_is_no_average():
    values = dict.fromkeys(TASKS, 1.0)
    del values["dmlab"]
    found = averages(values)
    assert (found.group_mean, found.task_mean, found.groups["structured"], found.groups["natural"]) == (
        None,
        None,
        None,
        1.0,
    )


def test_seeds_are_averaged_with_their_deviation(made):
    found = made(whole(seeds=(18, 25, 45)))
    mean = 100 * fmean(0.3 + 0.01 * n + 0.01 for n in range(19))
    state, params, seeds, *_, task_mean = lines(found)["lora"]
    assert (params, seeds, task_mean, state) == ("0.295", "3", f"{mean:.2f} ± 1.00", "ours")
    assert lines(found, 1)["lora"][1] == f"{100 * fmean((0.3, 0.31, 0.32)):.2f} ± {stdev((30, 31, 32)):.2f}"


def test_seeds_that_differ_by_task_give_a_mean_without_a_deviation(made):
    found = made([*whole(seeds=(1, 2)), row("svhn", 3, 0.5)])
    assert lines(found)["lora"][2] == "2 to 3"
    assert "±" not in lines(found)["lora"][-1]


def test_a_part_of_the_tasks_shows_its_count_and_no_average(made):
    found = made([one for one in whole() if one["task"] in (*tasks_of("specialized"), "dmlab")])
    state, _, _, natural, specialized, structured, group_mean, task_mean = lines(found)["lora"]
    assert (natural, structured, group_mean, task_mean) == ("0 of 7", "1 of 8", "-", "-")
    assert re.fullmatch(r"\d\d\.\d\d", specialized)
    assert state == "ours, 5 of 19 tasks"
    assert all("tasks: ours are 5 of 19" in said for name, said in verdicts(found).items() if "adapter_plus" in name)


def test_the_same_protocol_is_comparable_and_says_what_still_differs(made):
    found = made(whole())
    assert found.sections[0].title == "VTAB-1k, protocol adapter-plus"
    said = verdicts(found)
    assert said["adapter_plus_r8 [adapter-plus]"] == "comparable; theirs: images resized without antialiasing"
    assert said["lora [adapter-plus]"] == "not comparable: backbone: theirs is not recorded"
    order = [name for name in said if said[name].startswith("comparable")]
    assert list(said)[1 : 1 + len(order)] == order, "comparable rows come first"


OSU = {
    "preprocessing__normalization": {"name": "none", "mean": [0.0] * 3, "std": [1.0] * 3},
    "preprocessing__interpolation": "bicubic",
    "data__format": "vtab-jpeg",
    "data__lossy": True,
}
DIFFERENT = {
    "backbone__name": ("vit_base_patch16_224.augreg_in21k", "backbone: ours augreg in21k, theirs original in21k"),
    "backbone__image_size": (
        [384, 384],
        "backbone: ours vit_base_patch16_224.orig_in21k at 384 x 384, hub weights abababababab, theirs original in21k",
    ),
    "backbone__weights": (
        {"source": "random", "origin": "seed 0", "sha256": "0" * 64},
        "backbone: ours vit_base_patch16_224.orig_in21k at 224 x 224, random weights, theirs original in21k",
    ),
    "preprocessing__normalization": (
        {"name": "imagenet", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "normalisation: ours imagenet, theirs none",
    ),
    "preprocessing__interpolation": ("bilinear", "interpolation: ours bilinear, theirs bicubic"),
    "preprocessing__resize": ("crop", "resizing: ours crop, theirs squash"),
    "preprocessing__augment": ("flip", "augmentation: ours flip, theirs none"),
    "data__lossy": (False, "image files: ours lossless, theirs lossy JPEG"),
    "data__split": ("train800", "training images: ours train800, theirs train800val200"),
    "selection__rule": ("best_val", "selection: ours the best epoch on val200, theirs the last epoch"),
}


def test_a_run_of_the_osu_protocol_is_comparable_with_its_row_only(made):
    said = verdicts(made(whole(**OSU)))
    assert said["lora [osu-lessons]"].startswith("comparable; theirs: lr, weight decay and options")
    assert said["lora [osu-lessons, best epoch]"] == "not comparable: theirs is the best epoch on the test split"
    assert said["lora8_noah [noah-family]"].startswith("not comparable: theirs is the best epoch on the test split; ")
    assert "normalisation: ours none, theirs imagenet" in said["lora8_noah [noah-family]"]


@pytest.mark.parametrize(("key", "value", "reason"), [(key, *rest) for key, rest in DIFFERENT.items()])
def test_each_difference_is_a_reason_in_words(made, key, value, reason):
    said = verdicts(made(whole(**(OSU | {key: value}))))
    assert said["lora [osu-lessons]"] == f"not comparable: {reason}"


def test_what_is_not_recorded_is_not_comparable(made):
    rows = whole(method=[{"name": "repadapter"}])
    said = verdicts(made(rows))["repadapter_readme [not recorded]"]
    assert "normalisation: theirs is not recorded; selection: theirs is not recorded" in said


def test_published_inconsistencies_are_notes(made):
    notes = " ".join(made(whole(method=[{"name": "repadapter"}])).sections[0].notes)
    assert "repadapter_readme (not recorded): printed 77.4, its per-task row averages 77.15." in notes
    assert "look swapped" in notes
    notes = " ".join(made(whole()).sections[0].notes)
    assert "lora8_noah (noah-family): printed 74.5, its per-task row averages 74.60." in notes


def test_a_value_from_memory_is_named_and_not_shown(made):
    found = made(whole(method=[{"name": "fact_tt"}]))
    assert not any("75.3" in cell for cells in lines(found).values() for cell in cells)
    assert any("from memory" in note and "fact_tt" in note for note in found.sections[0].notes)


def test_embedded_tasks_are_apart_from_every_published_row(made):
    embedded = {"data__format": "embedded"}
    found = made([row("digits", accuracy=0.9, **embedded), row("easyvqa_position", accuracy=0.4, **embedded), *whole()])
    first, second = found.sections
    assert first.title.startswith("VTAB-1k")
    assert second.title == "Embedded tasks, protocol adapter-plus"
    assert [table.columns for table in second.tables] == [["method", "seeds", "digits", "easyvqa_position"]]
    assert lines(found, section=1) == {"lora": ["1", "90.00", "40.00"]}
    assert "digits" not in first.tables[1].columns
    assert "no published number belongs beside them" in second.notes[0]


def test_data_of_ones_own_is_apart_too(made):
    found = made([row("flowers", data__format="folder")])
    assert [section.title for section in found.sections] == ["Data of one's own, protocol adapter-plus"]


def test_protocols_have_a_table_each_and_departures_are_noted(made):
    changed = {"protocol__changed": {"optim.lr": 0.5}, "optim__lr": 0.5}
    found = made([*whole(), *whole(protocol=None), *whole(protocol__name="noah-family", **changed)])
    assert [section.title for section in found.sections] == [
        "VTAB-1k, protocol adapter-plus",
        "VTAB-1k, protocol noah-family",
        "VTAB-1k, no protocol named",
    ]
    assert "lora: departs from noah-family in optim.lr." in found.sections[1].notes


def test_rows_of_the_first_version_have_no_protocol(made):
    rows = whole()
    for one in rows:
        del one["protocol"]
    assert made(rows).sections[0].title == "VTAB-1k, no protocol named"


def test_hyper_parameters_may_differ_between_tasks(made):
    rows = [row(task, optim__lr=1e-2 if task == "svhn" else 1e-3) for task in TASKS]
    found = made(rows)
    assert lines(found)["lora"][0] == "ours"
    assert "lora: settings differ between tasks: optim.lr." in found.sections[0].notes


def test_runs_of_a_search_stay_apart(made):
    found = made([*whole(), *whole(shift=0.1, optim__lr=1e-2)])
    assert [name for name in lines(found) if name.startswith("lora (")] == [
        "lora (optim.lr 0.001)",
        "lora (optim.lr 0.01)",
    ]


def test_a_row_that_is_there_twice_counts_once(made, tmp_path):
    rows = whole()
    found = made([*rows, *rows])
    assert lines(found)["lora"][2] == "1"
    assert found.notes == []


def test_of_a_repeated_run_the_last_counts_however_good(made):
    first, second = row(accuracy=0.9, date="2026-01-01"), row(accuracy=0.6, date="2026-01-02")
    assert runs.fingerprint(first) == runs.fingerprint(second)
    found = made([second | {"id": "b"}, first | {"id": "a"}])
    assert lines(found, 1)["lora"] == ["1", "60.00"]
    assert found.notes == [
        "lora on cifar100, seed 0: 2 runs under the same settings, of which the last counts (b, 2026-01-02), and their "
        "accuracies differ: 60.00, 90.00."
    ]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"task": "svhn"}, {"optim__lr": 1.0}, {"data__lossy": True}])
def test_the_fingerprint_changes_with_what_decides_the_number(changes):
    assert runs.fingerprint(row(**changes)) != runs.fingerprint(row())


def test_the_fingerprint_does_not_change_with_place_and_time():
    elsewhere = row(accuracy=0.7, date="2027", train__accelerator="gpu", data__workers=4) | {"folder": "x", "git": "y"}
    assert runs.fingerprint(elsewhere) == runs.fingerprint(row())


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


def test_several_files_and_folders_are_read_once_each(tmp_path):
    append_row(tmp_path / "a" / "results.jsonl", row("svhn"))
    append_row(tmp_path / "b" / "c" / "results.jsonl", row("dtd"))
    found = report.build([tmp_path, tmp_path / "a", tmp_path / "a" / "results.jsonl"])
    assert found.sections[0].tables[1].columns == ["method", "seeds", "dtd", "svhn"]


def test_tasks_and_methods_are_chosen(made):
    rows = [*whole(), *whole(method=[{"name": "bitfit"}])]
    found = made(rows, tasks=["cifar", "svhn"], methods=["bitfit"])
    (table,) = found.sections[0].tables
    assert table.columns == ["method", "seeds", "cifar100", "svhn"]
    assert "bitfit [paper-vpt], not comparable" in lines(found)
    assert not any("lora" in name for name in lines(found))


MISTAKES = {
    "task": ({"tasks": ["svnh"]}, "command line: there is no task 'svnh'; did you mean 'svhn'?"),
    "method": ({"methods": ["loar"]}, "command line: there is no method 'loar'; did you mean 'lora'?"),
    "nothing left": ({"tasks": ["dtd"]}, "There is no result row to report for these tasks and methods."),
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_sentence(made, words, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made([row()], **words)


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give results\.jsonl files"):
        report.build([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"holds no results\.jsonl, nor does a folder below it"):
        report.build([tmp_path])


def test_the_csv_holds_every_number_and_reason(made):
    found = made(whole(seeds=(1, 2)))
    first, *others = csv.DictReader(io.StringIO(render.as_csv(found)))
    assert (first["kind"], first["method"], first["protocol"]) == ("ours", "lora", "adapter-plus")
    assert float(first["cifar100"]) == pytest.approx(30.5)
    assert float(first["cifar100 sd"]) == pytest.approx(stdev((30, 31)))
    assert float(first["task_mean"]) == pytest.approx(39.5)
    assert float(first["group_mean sd"]) == pytest.approx(stdev((30, 31)))
    noah = next(one for one in others if one["method"] == "lora8_noah")
    assert noah["compared"].startswith("not comparable")
    assert "NOAH paper row" in noah["source"]
    assert (float(noah["svhn"]), float(noah["task_mean"])) == (85.3, 72.25)


def test_markdown_is_whole_tables(made):
    text = render.markdown(made(whole()))
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {len(("method", "params", "seeds", "n", "sp", "st", "g", "t", "compared")) + 1, 22}
    assert "## VTAB-1k, protocol adapter-plus" in text


def test_latex_is_balanced_and_escaped(made):
    text = render.latex(made(whole(seeds=(1, 2))))
    for name in ("table", "tabular", "itemize"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    assert r"lora8\_noah [noah-family]" in text
    assert r"$\pm$" in text
    assert not re.search(r"(?<!\\)[_#%&]", re.sub(r"^%.*$| & ", "", text, flags=re.M).replace(r"\_", ""))


def test_the_terminal_shows_tables_reasons_and_notes(made):
    console = Console(width=200, record=True, file=io.StringIO())
    render.terminal(made(whole()), console)
    text = console.export_text()
    assert "protocol adapter-plus" in text
    (number,) = re.findall(r"lora8_noah \[noah-family\] +not comparable \[(\d)\]", text)
    assert re.search(rf"^\[{number}\] theirs is the best epoch on the test split; normalisation: ours", text, re.M)
    assert "- lora8_noah (noah-family): printed 74.5" in text


def test_a_narrow_terminal_cuts_the_columns_and_no_number(made):
    found = made(whole(seeds=(1, 2)))
    for width in range(70, 90):
        console = Console(width=width, record=True, file=io.StringIO())
        render.terminal(found, console)
        text = console.export_text()
        assert all(f"{30.5 + number:.2f} ± 0.71" in text for number in range(19))
        assert "…" not in text


def test_real_runs_are_reported(tmp_path, capsys):
    config = tiny_config(write_images(tmp_path / "images"), tmp_path / "runs", epochs=1)
    run.train(config)
    found = report.build([tmp_path / "runs"])
    assert found.notes == []
    assert found.sections[0].title == "Data of one's own, no protocol named"
    assert "random weights" in found.sections[0].about
