from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts import write_vtab
from vpeft.data import vtab


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


def test_the_splits_are_those_of_the_lists(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    listing = vtab.read(folder, "eurosat", "train800")
    assert [len(split) for split in (listing.train, listing.val, listing.test)] == [40, 10, 20]
    assert listing.train.files[3] == folder / "images/train/000003.png"
    assert listing.train.labels[:4] == [0, 1, 2, 3]


def test_train800val200_leaves_nothing_to_choose_on(tmp_path: Path) -> None:
    listing = vtab.read(write_vtab(tmp_path), "eurosat", "train800val200")
    assert [len(split) for split in (listing.train, listing.val, listing.test)] == [50, 0, 20]


def test_classes_come_from_the_table_and_not_from_the_labels(tmp_path: Path) -> None:
    listing = vtab.read(write_vtab(tmp_path, "dtd", classes=3), "dtd", "train800")
    assert len(listing.classes) == 47


def test_png_is_lossless_and_jpeg_is_recorded_as_lossy(tmp_path: Path) -> None:
    png = vtab.read(write_vtab(tmp_path / "png"), "eurosat", "train800").provenance
    jpeg = vtab.read(write_vtab(tmp_path / "jpeg", suffix=".jpg"), "eurosat", "train800").provenance
    assert (png["format"], png["lossy"]) == ("vtab-png", False)
    assert (jpeg["format"], jpeg["lossy"]) == ("vtab-jpeg", True)
    assert "compressed with loss" in jpeg["warning"]


def test_another_number_of_images_than_the_benchmark_has_is_recorded(tmp_path: Path) -> None:
    warning = vtab.read(write_vtab(tmp_path), "eurosat", "train800").provenance["warning"]
    assert "train800.txt of eurosat lists 40 images and not the 800 of the task." in warning
    assert "test.txt of eurosat lists 20 images and not the 5400 of the task." in warning


def test_a_community_folder_name_is_found(tmp_path: Path) -> None:
    write_vtab(tmp_path, "cifar")
    assert vtab.task_folder(tmp_path, "cifar100") == tmp_path / "cifar"
    assert vtab.task_folder(tmp_path / "cifar", "cifar100") == tmp_path / "cifar"
    assert vtab.task_folder(tmp_path, "dtd") is None


def test_a_missing_list_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    (folder / "val200.txt").unlink()
    with pytest.raises(ValueError, match=r"val200\.txt is missing; .* has train800\.txt, train800val200\.txt, test"):
        vtab.read(folder, "eurosat", "train800")
    assert len(vtab.read(folder, "eurosat", "train800val200").train) == 50


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    (folder / "test.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test\.txt lists no image"):
        vtab.read(folder, "eurosat", "train800")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("images/train/000002.png 10", "label 10 is out of range; eurosat has 10 classes, so labels 0 to 9"),
        ("images/train/000002.png -1", "label -1 is out of range"),
        ("images/train/000002.png", "is not an image and its label"),
        ("images/train/000002.png two", "is not an image and its label"),
        ("../../etc/passwd 1", "'../../etc/passwd' leaves the task's folder"),
        ("/etc/passwd 1", "'/etc/passwd' leaves the task's folder"),
        ("images\\\\train.png 1", "leaves the task's folder"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, reason: str) -> None:
    folder = write_vtab(tmp_path)
    replace_line(folder / "train800.txt", 3, line)
    with pytest.raises(ValueError, match=rf"train800\.txt, line 3: .*{reason}"):
        vtab.read(folder, "eurosat", "train800")


def test_an_image_trained_on_and_tested_on_is_refused(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    replace_line(folder / "test.txt", 1, "images/train/000007.png 7")
    with pytest.raises(ValueError, match=r"000007\.png is listed for train and for test"):
        vtab.read(folder, "eurosat", "train800val200")
