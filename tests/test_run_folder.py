import dataclasses
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vpeft import run_folder
from vpeft.config import Config, ConfigError, DataConfig, OptimConfig
from vpeft.results import append_row, read_rows


@pytest.fixture
def config(tmp_path):
    return Config(output=tmp_path / "runs", name="mine")


def test_folders_are_numbered_and_never_shared(config):
    runs = [run_folder.create(config) for _ in range(3)]
    assert [run.path.name for run in runs] == ["mine", "mine-2", "mine-3"]
    assert len({run.id for run in runs}) == 3
    assert run_folder.same(config) == runs


def test_a_new_folder_has_the_highest_number_so_that_the_highest_is_the_newest(config):
    runs = [run_folder.create(config) for _ in range(3)]
    shutil.rmtree(runs[0].path)
    shutil.rmtree(runs[1].path)
    assert run_folder.create(config).path.name == "mine-4"
    assert [run.path.name for run in run_folder.same(config)] == ["mine-3", "mine-4"], "gaps are skipped"


def test_folders_are_in_the_order_of_their_numbers(config):
    runs = [run_folder.create(config) for _ in range(11)]
    assert run_folder.find(config) == runs[10]


def test_a_link_whose_answer_was_lost_is_the_process_own(config, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # NFS: the answer was lost, and it was asked again

    monkeypatch.setattr(os, "link", lost)
    assert run_folder.create(config).path.name == "mine"
    assert run_folder.create(config).path.name == "mine-2"


def test_there_may_be_no_run_yet(config):
    assert run_folder.find(config) is None


def test_a_folder_that_is_no_run_is_left_alone(config):
    (config.output / "mine").mkdir(parents=True)
    (config.output / "mine" / "notes.txt").write_text("mine")
    assert run_folder.find(config) is None
    assert run_folder.create(config).path.name == "mine-2"


@pytest.mark.parametrize("left", [[], [".run.json.0123abcd.tmp"]])
def test_a_folder_in_which_a_process_was_killed_at_once_is_taken_over(config, left):
    (config.output / "mine").mkdir(parents=True)
    for name in left:
        (config.output / "mine" / name).write_text("{")
    run = run_folder.create(config)
    assert run.path.name == "mine"
    assert sorted(file.name for file in run.path.iterdir()) == ["config.yaml", "run.json"]
    assert run_folder.create(config).path.name == "mine-2"


@pytest.mark.parametrize("links", [True, False])
def test_an_empty_folder_goes_to_one_of_many(config, monkeypatch, links):
    (config.output / "mine").mkdir(parents=True)
    if not links:  # one after another there
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "Not supported")))
    with ThreadPoolExecutor(8 if links else 1) as pool:
        runs = list(pool.map(run_folder.create, [config] * 24))
    assert len({run.path for run in runs}) == 24
    assert {run.id for run in runs} == {run.record["id"] for run in runs}
    files = [file.name for run in runs for file in run.path.iterdir()]
    assert sorted(files) == ["config.yaml"] * 24 + ["run.json"] * 24


def test_a_full_disk_leaves_no_folder(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"mine/run.json could not be written: No space left on device. Free some space"):
        run_folder.create(config)
    assert not (config.output / "mine").exists()


def test_a_path_that_is_no_text_is_refused_before_anything_is_made(config):
    config.data.root = Path(os.fsdecode(b"caf\xe9"))
    with pytest.raises(ConfigError, match=r"no UTF-8 text \(at .*caf\\udce9.*rename the file or folder"):
        run_folder.create(config)
    assert not config.output.exists()


def test_a_run_that_was_killed_before_its_config_was_written_gets_it(config):
    run = run_folder.create(config)
    before = run.config.read_text()
    run.config.unlink()
    assert run_folder.find(config) == run
    assert run.config.read_text() == before


def test_a_run_of_another_name_is_another_run(config):
    run_folder.create(dataclasses.replace(config, name="mine-2"))
    assert run_folder.find(config) is None
    run = run_folder.create(config)
    assert run.path.name == "mine-3"
    assert run_folder.find(config) == run


def test_the_newest_unfinished_run_under_the_same_settings_is_resumed(config):
    first, second, third = (run_folder.create(config) for _ in range(3))
    other = dataclasses.replace(config, seed=7)
    of_other = run_folder.create(other)
    third.finish({"id": third.id}, config.output / "results.jsonl")
    assert run_folder.find(config) == second
    assert run_folder.find(other) == of_other
    second.finish({"id": second.id}, config.output / "results.jsonl")
    assert run_folder.find(config) == first
    first.finish({"id": first.id}, config.output / "results.jsonl")
    assert run_folder.find(config) == third, "all are finished: the newest"


def test_default_name_says_what_runs():
    config = Config(method=[{"name": "vpt"}, {"name": "lora"}], backbone="hf:google/vit", seed=3)
    assert run_folder.default_name(config) == "digits-vpt+lora-hf_google_vit-seed3"


def test_a_row_is_appended_once_however_often_a_run_is_finished(config, tmp_path):
    run, results = run_folder.create(config), tmp_path / "results.jsonl"
    assert run.result is None
    append_row(results, {"id": run.id, "accuracy": 0.5})  # killed between this and the mark
    run.finish({"id": run.id, "accuracy": 0.5, "date": "later"}, results)
    run.finish({"id": run.id, "accuracy": 0.5, "date": "later"}, results)
    assert len(read_rows(results)) == 1
    assert run.result == {"id": run.id, "accuracy": 0.5}, "the row that there is"


def test_the_same_settings_may_go_on(config):
    config.method = {"name": "lora", "targets": ("q", "v")}
    run = run_folder.create(config)
    config.train.resume, config.data.workers = True, 4
    assert run_folder.find(config) == run


def test_other_settings_are_named(config):
    run = run_folder.create(config)
    run_folder.create(config).finish({"id": "x"}, config.output / "results.jsonl")
    config.optim, config.data = OptimConfig(lr=0.5), DataConfig(task="shapes")
    said = r"data.task was digits and is shapes, optim.lr was 0.001 and is 0.5"
    with pytest.raises(ConfigError, match=f"^{run.path} cannot be resumed under other settings: {said}"):
        run_folder.find(config)


def test_the_record_of_settings_is_plain_json(config):
    run = run_folder.create(config)
    assert json.loads((run.path / "run.json").read_text())["settings"]["output"] == str(config.output)
