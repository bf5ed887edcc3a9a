"""Places that cannot be written are named in a sentence; what is only read is used from there."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.disk import needs_mount, read_only
from tests.faults.places import textile  # noqa: F401  (fixture)
from tests.runs import tiny_config, write_images
from vpeft.backbones import embedded as weights
from vpeft.backbones.weights import content_hash
from vpeft.config import to_yaml
from vpeft.data import embedded, prepare
from vpeft.results import append_row, read_rows
from vpeft.run import train

ROOT = Path(__file__).parents[2]
METHOD = {"name": "linear"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def ends(images, output):
    """What the command prints last of a run that cannot write there."""
    file = images.parent / "config.yaml"
    file.write_text(to_yaml(tiny_config(images, output, METHOD, epochs=1)))
    done = subprocess.run([sys.executable, "tools/train.py", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@needs_mount
def test_a_run_whose_output_folder_is_read_only_writes_nothing(images, tmp_path):
    with read_only(tmp_path), pytest.raises(OSError, match="Read-only file system"):
        train(tiny_config(images, tmp_path / "out", METHOD, epochs=1))
    assert not os.listdir(tmp_path)


@needs_mount
@pytest.mark.slow
def test_the_command_names_an_output_folder_that_is_read_only(images, tmp_path):
    with read_only(tmp_path):
        said = ends(images, tmp_path / "out")
    assert said == (
        f"error: {tmp_path}/out: Read-only file system. Choose another place, or change who may use this one."
    )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["below a file", "a link to nothing", "a file"])
def test_an_output_folder_that_cannot_be_made_is_named(images, tmp_path, kind):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    place = {"below a file": "file/out", "a link to nothing": "link", "a file": "file"}[kind]
    with pytest.raises(OSError, match=place):
        train(tiny_config(images, tmp_path / place, METHOD, epochs=1))
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@needs_mount
def test_data_that_are_read_only_are_trained_on(images, tmp_path):
    with read_only(images):
        train(tiny_config(images, tmp_path, METHOD, epochs=1))
    assert len(read_rows(tmp_path / "results.jsonl")) == 1


@needs_mount
def test_a_row_that_may_not_be_written_is_written_when_it_may(images, tmp_path):
    config, results = tiny_config(images, tmp_path, METHOD, epochs=1), tmp_path / "results.jsonl"
    append_row(results, {"id": "before"})
    with read_only(results), pytest.raises(OSError, match="Read-only file system"):
        train(config)
    assert [row["id"] for row in read_rows(results)] == ["before"]
    adapter = load_file(tmp_path / "run" / "adapter.safetensors")
    row = train(dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True)))
    assert [known["id"] for known in read_rows(results)] == ["before", row["id"]]
    again = load_file(tmp_path / "run" / "adapter.safetensors")
    assert all(torch.equal(again[name], adapter[name]) for name in adapter)


@needs_mount
def test_a_cache_that_is_read_only_gives_what_it_has_and_is_named_for_what_it_has_not(tmp_path, monkeypatch):
    state = {"w": torch.arange(10.0)}
    entry = weights.EmbeddedBackbone("a", "p", "1", "0" * 64, 1, "m", content_hash(state), "d", "l")
    monkeypatch.setitem(weights.EMBEDDED, "tiny", entry)
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    with (
        read_only(tmp_path),
        pytest.raises(RuntimeError, match=r"cache cannot be written: Read-only .*Set VPEFT_CACHE"),
    ):
        weights.embedded_state_dict("tiny")
    save_file(state, tmp_path / "weights" / "tiny.safetensors")
    with read_only(tmp_path):
        assert content_hash(weights.embedded_state_dict("tiny")) == entry.sha256


@needs_mount
def test_a_prepared_task_that_is_read_only_is_read_and_a_damaged_one_is_named(textile):  # noqa: F811
    with read_only(textile.parent):
        assert prepare.prepare("textile", textile.parent) == textile
        assert len(embedded.read(textile, "textile", "train800").train) == 800
    (textile / "test.txt").write_text("damaged")
    with read_only(textile.parent), pytest.raises(RuntimeError, match="cannot be written: Read-only file system"):
        prepare.prepare("textile", textile.parent)
