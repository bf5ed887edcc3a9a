"""Runs beside published numbers: what is averaged, what is compared, and what a report refuses to say."""

import re
from statistics import fmean, stdev

import pytest

from tests.results.rows import lines, row, verdicts, whole
from tests.runs import tiny_config, write_images
from vpeft import run
from vpeft.results import report
from vpeft.results.averages import TASKS, averages, tasks_of


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


def half(deviation):
    """Half the interval of three seeds; Student's t of two degrees of freedom is 4.3027 at 97.5 %."""
    return 4.3027 * deviation / 3**0.5


def test_seeds_are_averaged_with_their_interval(made):
    found = made(whole(seeds=(18, 25, 45)))
    mean = 100 * fmean(0.3 + 0.01 * n + 0.01 for n in range(19))
    state, params, seeds, *_, task_mean = lines(found)["lora"]
    assert (params, seeds, task_mean, state) == ("0.295", "3", f"{mean:.2f} ± {half(1):.2f}", "ours")
    assert lines(found, 1)["lora"][1] == f"{100 * fmean((0.3, 0.31, 0.32)):.2f} ± {half(stdev((30, 31, 32))):.2f}"


def test_seeds_that_differ_by_task_give_a_mean_without_an_interval(made):
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


def test_weights_of_a_file_and_images_left_out_are_notes(made):
    def notes(**changes):
        return made([*whole(**OSU), row("svhn", 1, **OSU, **changes)]).sections

    (plain,) = notes()
    assert not any("file" in note or "left out" in note for note in plain.notes)
    (section,) = notes(data__skipped=3)
    assert "lora: unreadable images were left out of training or test (svhn 3)." in section.notes
    file = {"source": "file", "origin": "ViT-B_16.npz", "sha256": "cd" * 32}
    hub, own = notes(backbone__weights=file)
    told = "The weights came from a file: that they are those of the backbone's name is not checked here."
    assert [told in one.notes for one in (hub, own)] == ["hub weights" in own.about, "file weights" in own.about]


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


def test_published_rows_have_their_source(made):
    notes = made(whole()).sections[0].notes
    (source,) = [note for note in notes if "lora8_noah [noah-family]" in note]
    assert source.startswith("From ")
    assert "NOAH paper row" in source


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
    averages, tasks, origin = second.tables
    assert averages.columns == ["method", "params (M)", "seeds", "natural", "structured", "2 groups", "2 tasks"]
    assert lines(found, section=1) == {"lora": ["0.295", "1", "90.00", "40.00", "65.00", "65.00"]}
    assert tasks.columns == ["method", "seeds", "digits", "easyvqa_position"]
    assert lines(found, table=1, section=1) == {"lora": ["1", "90.00", "40.00"]}
    assert origin.title == "Where the rows come from"
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


def test_tasks_and_methods_are_chosen(made):
    rows = [*whole(), *whole(method=[{"name": "bitfit"}])]
    found = made(rows, tasks=["cifar", "svhn"], methods=["bitfit"])
    table, _ = found.sections[0].tables
    assert table.columns == ["method", "seeds", "cifar100", "svhn"]
    assert "bitfit [paper-vpt], not comparable" in lines(found)
    assert not any("lora" in name for name in lines(found))


MISTAKES = {
    "task": ({"tasks": ["svnh"]}, "command line: there is no task 'svnh'; did you mean 'svhn'?"),
    "method": ({"methods": ["loar"]}, "command line: there is no method 'loar'; did you mean 'lora'?"),
    "nothing left": (
        {"tasks": ["dtd"]},
        "There is no result row to report for these tasks and methods; leave out --task or --method.",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_sentence(made, words, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made([row()], **words)


def test_rows_that_are_all_left_out_are_told_with_the_reason(made):
    segmented = row() | {"test": {"miou": 0.3}}
    words = (
        r"There is no result row to report; give results\.jsonl files of runs that ended\. "
        r".*results\.jsonl, line 1: a result row without 'accuracy'; it is left out"
    )
    with pytest.raises(ValueError, match=words):
        made([segmented])


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give results\.jsonl files"):
        report.build([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"holds no results\.jsonl, nor does a folder below it"):
        report.build([tmp_path])


def test_real_runs_are_reported(tmp_path, capsys):
    config = tiny_config(write_images(tmp_path / "images"), tmp_path / "runs", epochs=1)
    run.train(config)
    found = report.build([tmp_path / "runs"])
    assert found.notes == []
    assert found.sections[0].title == "Data of one's own, no protocol named"
    assert "random weights" in found.sections[0].about
