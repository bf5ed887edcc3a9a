"""A multimodal run that was stopped and resumed ends with the same bits as one that was not."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from mllm import run
from mllm.data_schema import FilesConfig
from mllm.task import Instruct
from tests.mllm.data.files import write_images, write_talks
from tests.mllm.runs import resumed, stopped, tiny_config, watched, write_language
from tests.mllm.vocabularies import by_bytes
from vpeft.results import read_rows
from vpeft.tasks.resuming import Interrupted

# What has a place in the data, and the batch in which a signal comes.
CASES = {
    "plain, in the second epoch": ({}, {}, 5),
    "plain, at the end of an epoch": ({}, {}, 3),
    "accumulated, between its batches": ({}, {"train": {"accumulate": 2, "steps": 5}}, 2),
    "accumulated, in a step of what is left of an epoch": (
        {"count": 6},
        {"train": {"accumulate": 2, "steps": 6}},
        4,
    ),
    "packed": ({"pack": True, "batch_size": 1}, {}, 4),
    "packed and accumulated": ({"pack": True, "batch_size": 1}, {"train": {"accumulate": 2, "steps": 5}}, 5),
    "grouped by length": ({"group_by_length": True}, {}, 5),
    "features kept": ({}, {"cache_features": True}, 5),
    "features kept and packed": ({"pack": True, "batch_size": 1}, {"cache_features": True}, 2),
    "layers recomputed": ({}, {"language": {"checkpointing": True}}, 5),
    "evaluated between": ({}, {"train": {"val_every": 3}}, 5),
    "evaluated between accumulated batches": (
        {"count": 6},
        {"train": {"accumulate": 2, "steps": 8, "val_every": 2}},
        11,
    ),
}


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language(tmp_path_factory.mktemp("language"))


def assert_equal(config, row, whole_config, whole):
    for part in ("test", "val", "steps", "parameters"):
        assert row[part] == whole[part]
    found, weights = (load_file(one.output / "run/adapter.safetensors") for one in (config, whole_config))
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert [known["id"] for known in read_rows(config.output / "results.jsonl")] == [row["id"]]
    assert not (config.output / "run-2").exists()


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed(language, tmp_path, case):
    data, change, batch = CASES[case]
    whole, parts = (tiny_config(language, tmp_path / name, data, **change) for name in ("whole", "parts"))
    expected = run.train(whole)
    with stopped(batch):
        run.train(parts)
    assert not (tmp_path / "parts/results.jsonl").exists()
    assert_equal(parts, run.train(resumed(parts)), whole, expected)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_answered_with_where_all_is(language, tmp_path, capsys, number, name):
    with stopped(2, number):
        run.train(tiny_config(language, tmp_path))
    said = capsys.readouterr().err
    assert f"Stopped by {name} after step 3. All is in {tmp_path}/run/last.ckpt; the same command with" in said
    assert "--train.resume true goes on from there." in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_stopped_in_its_test_it_is_only_tested_again(language, tmp_path, monkeypatch):
    """With what the evaluation after the last step has found."""
    change = {"train": {"steps": 4, "val_every": 2}}
    whole, parts = (tiny_config(language, tmp_path / name, **change) for name in ("whole", "parts"))
    expected = run.train(whole)
    assert expected["val"]
    with monkeypatch.context() as patch:
        patch.setattr(Instruct, "on_test_epoch_start", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run.train(parts)
    monkeypatch.setattr(Instruct, "training_step", lambda *_: 1 / 0)
    assert_equal(parts, run.train(resumed(parts)), whole, expected)


@pytest.mark.parametrize("evaluation", [1, 2], ids=["in the middle", "the last"])
def test_stopped_in_an_evaluation_it_is_evaluated_then(language, tmp_path, monkeypatch, evaluation):
    change = {"train": {"steps": 4, "val_every": 2}}
    whole, parts = (tiny_config(language, tmp_path / name, **change) for name in ("whole", "parts"))
    expected, begun = run.train(whole), []

    def start(task):
        begun.append(task.global_step)
        if len(begun) == evaluation:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Instruct, "on_validation_start", start)
    with pytest.raises(Interrupted):
        run.train(parts)
    assert_equal(parts, run.train(resumed(parts)), whole, expected)
    assert begun == ([2, 2, 4] if evaluation == 1 else [2, 4, 4])


def talking(folder, name, **change):
    """A run on files, whose images are read when they are needed."""
    root = folder / name / "data"
    write_talks(root, 20)
    files = FilesConfig(train=["talks.json"], test=["talks.json"])
    data = {"task": "talks", "root": root, "files": files, "max_length": 120, "on_missing": "skip"} | change
    (root / "images/1.png").unlink()
    return tiny_config(write_language(folder / name / "language", by_bytes()), folder / name, data)


@pytest.mark.parametrize("change", [{}, {"pack": True, "batch_size": 1}, {"group_by_length": True}], ids=str)
def test_an_image_that_vanishes_while_it_is_stopped_changes_no_place(tmp_path, monkeypatch, change):
    """It ends as a run that lost the image in the same batch and went on; one that comes back is not looked at."""
    monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    whole, parts = (talking(tmp_path, name, **change) for name in ("whole", "parts"))
    steps = []

    def lose(task, *batch):
        steps.append(0)
        if len(steps) == 4:
            (whole.data.root / "images/12.png").unlink()

    with watched("training_step", lose):
        expected = run.train(whole)
    with stopped(3):
        run.train(parts)
    (parts.data.root / "images/12.png").unlink()
    write_images(parts.data.root / "images", 2)
    row = run.train(resumed(parts))
    assert_equal(parts, row, whole, expected)
    for key in ("counts", "skipped", "tokens"):
        assert row["data"][key] == expected["data"][key]
    assert (row["images_lost"], expected["images_lost"]) == (1, 2)


def test_data_that_has_changed_is_not_resumed(tmp_path):
    settings = talking(tmp_path, "run")
    with stopped(3):
        run.train(settings)
    write_talks(settings.data.root, 19)
    with pytest.raises(ValueError, match="its data holds other samples, or in another order, than when it began"):
        run.train(resumed(settings))


def test_other_settings_are_not_resumed(language, tmp_path):
    with stopped(2):
        run.train(tiny_config(language, tmp_path))
    with pytest.raises(ValueError, match=r"connector"):
        run.train(resumed(tiny_config(language, tmp_path, connector={"name": "linear"})))
