"""Folders as people have them: odd names, links, what file managers leave behind; training and prediction agree."""

import csv
import os
from pathlib import Path

import pytest

from tests.data.layouts import write_image
from tests.runs import tiny_config, write_images
from vpeft.data import folder, masked
from vpeft.predict import find_images
from vpeft.results import read_rows
from vpeft.run import train

ODD = ("a b.png", "-rf.png", "ünï 画像.png", "two\nlines.png", "[red] $(x) %s.png", f"{'x' * 251}.png", "UPPER.PNG")
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def classes(root: Path, count: int = 3) -> Path:
    for name in ("cat", "dog"):
        for i in range(count):
            write_image(root / name / f"{i}.png", i)
    return root


def names(root: Path) -> set[str]:
    listing = folder.read(root, "own", "train800")
    return {file.name for part in (listing.train, listing.val, listing.test) for file in part.files}


def test_what_file_managers_leave_behind_is_no_image_to_anyone(tmp_path):
    root = classes(tmp_path / "root")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/9.png", ".ipynb_checkpoints/0-copy.png"):
        (root / "cat" / name).parent.mkdir(exist_ok=True)
        (root / "cat" / name).write_bytes(b"\0")
    (root / ".cache").mkdir()
    assert names(root) == {"0.png", "1.png", "2.png"}
    assert [path.relative_to(root).as_posix() for path in find_images([root])] == [
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)
    ]


def test_a_folder_that_holds_only_such_files_is_named(tmp_path):
    root = classes(tmp_path / "root")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._0.png").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"class folder .*__MACOSX holds no image .*; fill or remove it"):
        folder.read(root, "own", "train800")


def test_links_to_files_and_to_class_folders_are_followed(tmp_path):
    root = classes(tmp_path / "root")
    elsewhere = tmp_path / "elsewhere"
    for i in (5, 6, 7):
        write_image(elsewhere / "bird" / f"{i}.png", i)
    (root / "bird").symlink_to(elsewhere / "bird")
    (root / "cat" / "link.png").symlink_to(elsewhere / "bird" / "5.png")
    assert folder.read(root, "own", "train800val200").classes == ["bird", "cat", "dog"]
    assert {"5.png", "6.png", "7.png", "link.png"} <= names(root)


def test_loops_of_links_end(tmp_path):
    root = classes(tmp_path / "root")
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat")
    assert names(root) == {"0.png", "1.png", "2.png"}
    assert len(find_images([root])) == 6


@pytest.mark.parametrize("target", ["gone", "lost"])
def test_a_class_that_is_a_link_to_nowhere_is_not_left_out(tmp_path, target):
    root = classes(tmp_path / "root")
    (root / "lost").symlink_to(target)
    with pytest.raises(ValueError, match=r"root/lost is a link that leads nowhere; repair or remove it\."):
        folder.read(root, "own", "train800")


def test_a_folder_that_may_not_be_read_is_not_left_out(tmp_path, monkeypatch):
    root = classes(tmp_path / "root")
    (root / "cat" / "more").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*more"):
        folder.read(root, "own", "train800")


def test_a_class_folder_whose_name_cannot_be_written_down_is_named(tmp_path):
    root = classes(tmp_path / "root")
    write_image(root / os.fsdecode(b"caf\xe9") / "0.png", 0)
    with pytest.raises(ValueError, match=r"class folder .*caf\\udce9 has a name that is no UTF-8 .*; rename it\."):
        folder.read(root, "own", "train800")


def test_the_cut_depends_on_the_bytes_of_a_name(tmp_path):
    root = classes(tmp_path / "root", 4)
    write_image(root / "cat" / NOT_UTF8, 0)
    first, second = (folder.read(root, "own", "train800") for _ in range(2))
    assert first.train.files == second.train.files
    assert NOT_UTF8 in names(root)


def test_masks_are_found_under_odd_names(tmp_path):
    for part in ("images", "masks"):
        for name in (*ODD, NOT_UTF8):
            write_image(tmp_path / part / name, 0)
        (tmp_path / part / "._a b.png").write_bytes(b"\0")
    found = masked.pair(tmp_path / "images", tmp_path / "masks")
    assert sorted(path.name for path in found.masks) == sorted((*ODD, NOT_UTF8))
    assert [path.name for path in found.images] == [path.name for path in found.masks]


def test_a_run_and_a_prediction_on_odd_names(tool, adapter, tmp_path, monkeypatch):
    root = write_images(tmp_path / "own data – 画像", 5)
    for name in (*ODD, NOT_UTF8):
        write_image(root / "red" / name, 0)
    (root / "red").rename(root / "rot & [red]")
    config = tiny_config(root, tmp_path / "out put", epochs=1)
    config.data.task = "own"
    row = train(config)
    assert row["data"]["counts"]["train"] + row["data"]["counts"]["val"] + row["data"]["counts"]["test"] == 23
    assert "rot & [red]" in read_rows(tmp_path / "out put" / "results.jsonl")[0]["test"]["per_class"]
    ended = tool("predict", adapter, root, "--top", 1, "--csv", tmp_path / "out.csv")
    assert (ended.code, ended.err) == (0, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(paths) == 23
    assert {Path(path).name for path in paths} >= {*ODD, "caf\\udce9.png"}
    assert "two\\nlines.png" in ended.out
    monkeypatch.chdir(root / "rot & [red]")
    assert tool("predict", adapter, "--", "-rf.png").code == 0
    assert tool("predict", adapter, "./-rf.png").code == 0
