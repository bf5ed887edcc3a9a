"""Data on the node's own disk: copied once, checked, used, and not what the row names."""

import errno
import shutil
import threading

import pytest
import yaml

from tests.runs import tiny_config, write_images
from vpeft import run
from vpeft.data.images import decode
from vpeft.slurm import staging
from vpeft.slurm.staging import local, stage


@pytest.fixture
def source(tmp_path):
    return write_images(tmp_path / "images" / "colors", count=3)


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("VPEFT_STAGE", "1")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    return staging.node_disk()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_takes_the_copy_of_the_first(source, tmp_path, capsys):
    copies = []
    threads = [threading.Thread(target=lambda: copies.append(stage(source, tmp_path / "node"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(copies)) == 1
    assert capsys.readouterr().err.count("9 files, ") == 1
    assert contents(copies[0]) == contents(source)
    assert copies[0].name == source.name, "a folder of one's own is called after itself"


def test_a_copy_that_lacks_a_file_is_made_anew(source, tmp_path):
    copy = stage(source, tmp_path / "node")
    (copy / "red" / "0.png").unlink()
    assert stage(source, tmp_path / "node") == copy
    assert contents(copy) == contents(source)


def test_a_copy_that_was_cut_short_is_made_anew(source, tmp_path):
    copy = stage(source, tmp_path / "node")
    (copy.parent / "whole").unlink()
    (copy / "red" / "0.png").write_bytes(b"")
    stage(source, tmp_path / "node")
    assert contents(copy) == contents(source)


def test_a_changed_source_gets_a_copy_of_its_own(source, tmp_path):
    before = stage(source, tmp_path / "node")
    shutil.copy(source / "red" / "0.png", source / "red" / "9.png")
    after = stage(source, tmp_path / "node")
    assert after != before
    assert contents(after) == contents(source) != contents(before), "which another run may be reading"


def test_a_full_disk_leaves_nothing_and_says_so(source, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(
        OSError, match=r"colors \(0 MB\) could not be copied to .*No space left.*leave out --slurm.stage"
    ):
        stage(source, tmp_path / "node")
    assert [path.suffix for path in (tmp_path / "node").iterdir()] == [".lock"]


def test_a_run_reads_the_copy_and_records_the_source(tmp_path, node, monkeypatch):
    source = write_images(tmp_path / "images" / "colors")
    config = tiny_config(source, tmp_path / "staged", epochs=1)
    read = []
    monkeypatch.setattr("vpeft.data.images.decode", lambda path: (read.append(path), decode(path))[1])
    staged = run.train(config)
    assert read
    assert all(path.is_relative_to(node) for path in read)
    assert yaml.safe_load((tmp_path / "staged" / "run" / "config.yaml").read_text())["data"]["root"] == str(source)
    monkeypatch.delenv("VPEFT_STAGE")
    plain = run.train(tiny_config(source, tmp_path / "plain", epochs=1))
    for part in ("task", "data", "test", "val"):
        assert staged[part] == plain[part]


def test_only_the_task_of_a_collection_is_copied(tmp_path, node):
    root = tmp_path / "vtab"
    for task in ("cifar", "svhn"):
        (root / task).mkdir(parents=True)
        (root / task / "test.txt").write_text("images/test/0.png 0\n")
    config = tiny_config(root, tmp_path / "out")
    config.data.task, config.data.format = "cifar100", "vtab"
    root = local(config).data.root
    assert root is not None
    assert root.is_relative_to(node)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["cifar"]


def test_without_being_asked_nothing_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    config = tiny_config(source, tmp_path / "out")
    assert local(config) is config
    assert not (tmp_path / "node").exists()
