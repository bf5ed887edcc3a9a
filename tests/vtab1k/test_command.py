"""data_prep/vtab1k.py: makes, verifies and lists, and says in a sentence what is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.vtab1k import small
from tests.vtab1k.test_community import written
from vpeft.config import DataConfig
from vpeft.data.classification import ClassificationData
from vpeft.data.tables import VTAB
from vpeft.vtab1k import manifest
from vpeft.vtab1k.readers import READERS

SCRIPT = Path(__file__).parents[2] / "data_prep" / "vtab1k.py"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("vtab1k_command", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_originals_are_made_and_a_run_reads_them(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.shrink(monkeypatch)
    folder, root = small.archives(tmp_path / "archives"), tmp_path / "root"
    arguments = ["--tasks", "cifar", "--source", "originals", "--archives", str(folder), "--root", str(root)]
    assert command.main(arguments) == 1
    assert "is not the known archive: size" in capsys.readouterr().err
    assert command.main([*arguments, "--accept-other-archives", "--workers", "2"]) == 0
    assert f"1 of 1 tasks are ready in {root}" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="train800val200.txt of cifar100 lists 10 images"):
        data = ClassificationData(DataConfig(task="cifar", root=root, workers=0), (32, 32), "bilinear", 0)
    told = data.provenance
    assert (told["format"], told["source"], told["lossy"], told["exact"]) == ("vtab-png", "originals", False, True)
    assert told["manifest"] == manifest.read(root / "cifar100", "cifar100")["sha256"]
    data.setup()
    assert len(data.files("test")) == 100


def test_a_changed_manifest_stops_a_run(command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.shrink(monkeypatch)
    arguments = ["--source", "originals", "--archives", str(small.archives(tmp_path / "a")), "--root", str(tmp_path)]
    assert command.main([*arguments, "--tasks", "cifar100", "--accept-other-archives", "--workers", "0"]) == 0
    path = tmp_path / "cifar100" / manifest.NAME
    path.write_text(path.read_text().replace("originals", "tfds"))
    config = DataConfig(task="cifar100", root=tmp_path, workers=0)
    with pytest.raises(ValueError, match=r"was changed after it was written.*data_prep/vtab1k.py --tasks cifar100"):
        ClassificationData(config, (32, 32), "bilinear", 0)


def test_verify_prints_a_table_and_fails(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path)
    assert command.main(["--tasks", "cifar", "--source", "community", "--from", str(tmp_path), "--workers", "0"]) == 0
    assert "are JPEG" in capsys.readouterr().err
    assert command.main(["--tasks", "cifar,dtd", "--root", str(tmp_path), "--verify", "--workers", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "what", "expected", "found"]
    assert ["cifar100", "images in test", "10,000", "10"] in [
        [cell.strip() for cell in line.split("  ") if cell] for line in lines
    ]
    assert lines[-1].split()[:2] == ["dtd", "folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "cifer100"], "VTAB-1k has no task 'cifer100'; did you mean 'cifar100'?"),
        (["--tasks", ","], "--tasks names no task"),
        ([], "--source is not given; say originals, tfds or community"),
        (["--source", "originals"], "--source originals needs --archives DIR"),
        (["--source", "tfds", "--tfds-dir", "/nowhere"], "--source tfds needs --root DIR"),
        (["--source", "originals", "--archives", "/nowhere"], "--archives /nowhere is not a folder"),
        (["--source", "community"], "--source community needs --from DIR"),
        (["--source", "tfds", "--tfds-dir", "/", "--root", __file__], "test_command.py is a file; give a folder"),
        (["--verify", "--root", "/nowhere"], "--root /nowhere is not a folder"),
        (["--verify"], "--root is not given"),
        (["--workers", "-1"], "--workers is -1"),
    ],
)
def test_a_wrong_request_is_answered_with_a_sentence(
    command: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_missing_archive_says_where_it_comes_from(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "originals", "--archives", str(tmp_path), "--root", str(tmp_path / "root")]
    assert command.main([*arguments, "--tasks", "svhn,resisc45"]) == 1
    told = capsys.readouterr().err
    assert "train_32x32.mat: http://ufldl.stanford.edu/housenumbers/train_32x32.mat" in told
    assert "resisc45:" in told
    assert "(by hand)" in told
    assert "0 of 2 tasks are ready" in told


def test_an_incomplete_archive_is_refused_before_anything_is_written(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small.archives(tmp_path / "archives")
    arguments = ["--tasks", "cifar100", "--source", "originals", "--archives", str(folder), "--accept-other-archives"]
    assert command.main([*arguments, "--root", str(tmp_path / "root")]) == 1
    assert "120 examples were found for TFDS's split 'train' and not 50,000" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_a_wrong_number_of_classes_is_refused(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(small.SIZES, "train", 40)
    monkeypatch.setitem(small.SIZES, "test", 20)
    folder = small.archives(tmp_path / "archives")
    arguments = ["--tasks", "cifar100", "--source", "originals", "--archives", str(folder), "--accept-other-archives"]
    assert command.main([*arguments, "--root", str(tmp_path / "root")]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "the archives hold 40 classes and not 100; no example has the labels 40, 41, 42, 43, 44 ..." in told


def test_needed_lists_every_archive_with_its_source(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--needed"]) == 0
    told = capsys.readouterr().out
    for task in VTAB:
        assert task in told
    assert "dmlab.tar.gz (3,017 MB)" in told
    assert "dsprites_loc, dsprites_ori" in told


def test_every_task_has_a_reader_module() -> None:
    assert set(READERS) == set(VTAB)


def test_help_runs_as_a_command() -> None:
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert run.returncode == 0
    assert "--source {originals,tfds,community}" in run.stdout
