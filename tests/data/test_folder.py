from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts import write_folder, write_image
from vpeft.data import folder


def names(split: object) -> set[str]:
    return {str(file) for file in split.files}  # type: ignore[attr-defined]


def test_sorted_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        write_folder(tmp_path / part, count=count)
    listing = folder.read(tmp_path, "pets", "train800")
    assert listing.classes == ["cat", "dog"]
    assert [len(split) for split in (listing.train, listing.val, listing.test)] == [10, 6, 8]
    assert listing.provenance["statement"] is None
    both = folder.read(tmp_path, "pets", "train800val200")
    assert [len(split) for split in (both.train, both.val, both.test)] == [16, 0, 8]


def test_class_folders_alone_are_cut_and_the_cut_is_stated(tmp_path: Path) -> None:
    write_folder(tmp_path)
    listing = folder.read(tmp_path, "pets", "train800")
    assert [len(split) for split in (listing.train, listing.val, listing.test)] == [12, 4, 4]
    assert listing.test.labels.count(0) == listing.test.labels.count(1) == 2
    assert len(names(listing.train) | names(listing.val) | names(listing.test)) == 20
    assert listing.provenance["statement"].startswith("test is a fifth of every class")
    assert folder.read(tmp_path, "pets", "train800val200").test == listing.test


def test_the_cut_is_that_of_the_paths_below_the_root(tmp_path: Path) -> None:
    cuts = []
    for place in ("here", "there"):
        write_folder(tmp_path / place)
        test = folder.read(tmp_path / place, "pets", "train800val200").test
        cuts.append([file.relative_to(tmp_path / place).as_posix() for file in test.files])
    assert cuts[0] == cuts[1] == ["cat/0.png", "cat/6.png", "dog/1.png", "dog/4.png"]


def test_files_in_subfolders_count_and_other_files_do_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", count=2)
    write_folder(tmp_path / "test", count=2)
    write_image(tmp_path / "train/cat/more/x.PNG", 5)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/.git").mkdir()
    assert len(folder.read(tmp_path, "pets", "train800val200").train) == 5


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(ValueError, match=r"The class folder .*/emu holds no image"):
        folder.read(tmp_path, "pets", "train800")


def test_class_folders_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ("Cat", "cat"))
    with pytest.raises(ValueError, match=r"'Cat' and 'cat', which differ only in case"):
        folder.read(tmp_path, "pets", "train800")


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat",))
    with pytest.raises(ValueError, match=r"has one folder, cat; a classifier needs at least two"):
        folder.read(tmp_path, "pets", "train800")


def test_a_class_of_one_image_cannot_be_cut(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_image(tmp_path / "emu/only.png", 0)
    with pytest.raises(ValueError, match=r"only\.png has one image, and a split needs two"):
        folder.read(tmp_path, "pets", "train800val200")


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", ("cat", "yak"))
    with pytest.raises(ValueError, match=r"test has the class folder 'yak', which the training images lack"):
        folder.read(tmp_path, "pets", "train800")


def test_a_test_folder_without_a_class_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"test holds none of the class folders"):
        folder.read(tmp_path, "pets", "train800")


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    with pytest.raises(ValueError, match=r"has train/ but no test/"):
        folder.read(tmp_path, "pets", "train800")
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(ValueError, match=r"has test/ or val/ but no train/"):
        folder.read(tmp_path, "pets", "train800")
