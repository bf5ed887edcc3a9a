"""--verify finds what differs from the reference and from the manifest, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vtab1k import small
from vpeft.data.tables import VTAB
from vpeft.vtab1k import manifest, reference, verify
from vpeft.vtab1k.cuts import CUTS, parts
from vpeft.vtab1k.export import export
from vpeft.vtab1k.verify import Difference, table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100 scaled down, in a reference that is scaled down with it."""
    small.shrink(monkeypatch)
    monkeypatch.setitem(verify.VTAB, "cifar100", _scaled())
    monkeypatch.setitem(verify.TEST_COUNTS, "cifar100", (1,) * 100)
    monkeypatch.setitem(verify.CLASSES_SHOWN, ("cifar100", "val200"), 2)
    return export(small.selection(tmp_path / "archives"), tmp_path / "root")


def _scaled():
    from dataclasses import replace

    return replace(VTAB["cifar100"], test=100)


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [(one.what, one.expected, one.found) for one in verify.verify("cifar100", folder.parent)]


def rewritten(folder: Path, change) -> None:
    """Write manifest and lists anew from rows that were changed, as a wrong export would have."""
    content = manifest.read(folder, "cifar100")
    rows = [dict(row) for row in content["images"]]
    change(rows)
    manifest.write(folder, "cifar100", rows, {"source": "originals", "lossy": False}, exact=True)
    manifest.write_lists(folder, rows)


def test_a_whole_task_differs_in_nothing_and_is_not_touched(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    seen: list[tuple[int, int]] = []
    assert verify.verify("cifar100", folder.parent, 2, lambda *at: seen.append(at)) == []
    assert seen[-1] == (110, 110)
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_pixels_that_changed_are_named_by_file(folder: Path) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "images/test/000007.png")
    ((what, expected, other),) = found(folder)
    assert what == "images/test/000007.png"
    assert len(expected) == len(other) == 12


def test_a_file_that_is_missing_or_damaged_is_told_and_many_are_counted(folder: Path) -> None:
    (folder / "images/val/000000.png").unlink()
    (folder / "images/test/000001.png").write_bytes(b"")
    rows = found(folder)
    assert ("images/val/000000.png", "a whole image", "No such file or directory") in rows
    assert any(what == "images/test/000001.png" and "is not a whole image" in other for what, _, other in rows)
    for i in range(2, 20):
        (folder / f"images/test/{i:06d}.png").unlink()
    assert found(folder)[-1][0] == "file: 17 more images"


def test_a_manifest_that_is_half_written_or_changed_is_named(folder: Path) -> None:
    path = folder / manifest.NAME
    text = path.read_text()
    path.write_text(text[:200])
    ((what, _, other),) = found(folder)
    assert what == manifest.NAME
    assert "manifest.json is damaged" in other
    path.write_text(text.replace('"lossy": false', '"lossy": true'))
    assert "was changed after it was written" in found(folder)[0][2]
    path.unlink()
    assert found(folder) == [(manifest.NAME, "written by data_prep/vtab1k.py", "missing")]


def test_a_list_that_changed_is_named(folder: Path) -> None:
    with (folder / "val200.txt").open("a") as file:
        file.write("images/test/000001.png 5\n")
    ((what, _, other),) = found(folder)
    assert what == "lists"
    assert "val200.txt is not the list that manifest.json was made with" in other


def test_a_split_of_another_size_and_a_class_without_images_are_told(folder: Path) -> None:
    rewritten(
        folder, lambda rows: rows.remove(next(row for row in rows if row["label"] == 3 and row["part"] == "test"))
    )
    assert found(folder) == [
        ("images in test", "100", "99"),
        ("classes in test", "100", "99"),
        ("test images of class 3", "1", "0"),
    ]


def test_a_label_out_of_range_and_another_choice_of_images_are_told(folder: Path) -> None:
    def change(rows: list[dict]) -> None:
        val = [row for row in rows if row["part"] == "val"]
        val[0]["label"] = val[1]["label"] = 100

    rewritten(folder, change)
    assert ("labels in val200", "0 to 99", "100") in found(folder)
    assert ("classes in val200", "2", "1") in found(folder)


def test_an_image_of_another_size_is_told(folder: Path) -> None:
    def change(rows: list[dict]) -> None:
        from vpeft.vtab1k.community import file_facts

        Image.new("RGB", (33, 32)).save(folder / rows[0]["file"])
        rows[0] |= file_facts(folder, rows[0]["file"])

    rewritten(folder, change)
    assert found(folder) == [("size of images/train/000000.png", "32 x 32", "33 x 32")]


def test_another_choice_than_the_published_one_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {part: [] for part in ("train", "val")}
    for row in manifest.read(folder, "cifar100")["images"]:
        keys.get(row["part"], []).append(f"train_{row['key']:05d}")
    hashes = {part: reference.names_hash(names) for part, names in keys.items()}
    monkeypatch.setitem(reference.CHOICE, "cifar100", (hashes["train"], hashes["val"]))
    assert found(folder) == []
    monkeypatch.setitem(reference.CHOICE, "cifar100", (hashes["train"], hashes["train"]))
    ((what, expected, other),) = found(folder)
    assert (what, other) == ("choice of images in val", hashes["val"][:12])
    assert expected == f"VPT's index ({hashes['train'][:12]})"


@pytest.mark.parametrize(
    ("task", "key", "name"),
    [
        ("cifar100", 42, "train_00042"),
        ("cifar100", "train_00042", "train_00042"),
        ("caltech101", "crab/image_0001.jpg", "image_0001.jpg"),
        ("eurosat", "Forest_Forest_12.jpg", "Forest_12.jpg"),
        ("eurosat", "Forest_12.jpg", "Forest_12.jpg"),
        ("resisc45", "tennis_court_tennis_court_263.jpg", "tennis_court_263.jpg"),
        ("sun397", "/a/abbey/sun_a.jpg", "/a/abbey/sun_a.jpg"),
    ],
)
def test_keys_have_the_names_of_the_index(task: str, key: str | int, name: str) -> None:
    assert reference.published_name(task, key) == name


def test_a_missing_task_is_told(tmp_path: Path) -> None:
    assert verify.verify("dtd", tmp_path) == [Difference("dtd", "folder", str(tmp_path / "dtd"), "missing")]


def test_caltech101_may_have_one_test_image_more_or_less() -> None:
    def sizes(test: int) -> list[str]:
        rows = [{"part": "test", "label": i % 102} for i in range(test)]
        content = {"images": rows, "source": "originals"}
        return [what for what, _, _ in verify._numbers("caltech101", content) if what == "images in test"]

    assert [len(sizes(test)) for test in (6082, 6083, 6084, 6085, 6086)] == [1, 0, 0, 0, 1]


def test_the_table_has_a_line_a_difference() -> None:
    lines = table([Difference("dtd", "images in test", "1,880", "1,879")]).splitlines()
    assert lines == ["task  what            expected  found", "dtd   images in test  1,880     1,879"]


# The column "val200 from" and "test" of VTAB's own counts (google-research/task_adaptation d7630d3, data/*_test.py).
STARTS = {
    "caltech101": ("train", 2754, "test", 0),
    "cifar100": ("train", 45_000, "test", 0),
    "dtd": ("validation", 0, "test", 0),
    "oxford_flowers102": ("validation", 0, "test", 0),
    "oxford_iiit_pet": ("train", 2944, "test", 0),
    "sun397": ("validation", 0, "test", 0),
    "svhn": ("train", 65_931, "test", 0),
    "patch_camelyon": ("validation", 0, "test", 0),
    "eurosat": ("train", 16_200, "train", 21_600),
    "resisc45": ("train", 18_900, "train", 25_200),
    "diabetic_retinopathy": ("validation", 0, "test", 0),
    "clevr_count": ("train", 63_000, "validation", 0),
    "clevr_dist": ("train", 63_000, "validation", 0),
    "dmlab": ("validation", 0, "test", 0),
    "kitti": ("validation", 0, "test", 0),
    "dsprites_loc": ("train", 589_824, "train", 663_552),
    "dsprites_ori": ("train", 589_824, "train", 663_552),
    "smallnorb_azi": ("test", 0, "test", 12_150),
    "smallnorb_ele": ("test", 0, "test", 12_150),
}


@pytest.mark.parametrize("task", VTAB)
def test_the_cut_of_every_task_is_that_of_vtab(task: str) -> None:
    found = parts(task, CUTS[task].sizes)
    val_split, val, test_split, test = STARTS[task]
    assert found["train"] == ("train", range(800))
    assert found["val"] == (val_split, range(val, val + 200))
    assert found["test"] == (test_split, range(test, test + VTAB[task].test))


def test_the_tasks_have_387_904_test_images_together() -> None:
    assert sum(task.test for task in VTAB.values()) == 387_904
    assert sum(reference.TEST_COUNTS["svhn"]) == VTAB["svhn"].test


def test_another_number_of_examples_is_refused_but_for_caltechs_one() -> None:
    with pytest.raises(ValueError, match=r"svhn: 73,256 examples were found for TFDS's split 'train' and not 73,257"):
        parts("svhn", {"train": 73_256, "test": 26_032})
    with pytest.raises(ValueError, match=r"kitti: 0 examples were found for TFDS's split 'validation' and not 423"):
        parts("kitti", {"train": 6347, "test": 711})
    assert len(parts("caltech101", {"train": 3060, "test": 6085})["test"][1]) == 6085
    assert parts("caltech101", {"train": 3059, "test": 6085})["val"] == ("train", range(2753, 2953))


def test_caltechs_choice_is_not_compared_where_the_archive_does_not_tell_it() -> None:
    rows = [{"part": part, "label": 0, "key": "crab/image_0001.jpg"} for part in ("train", "val")]
    for source, count in (("originals", 0), ("tfds", 2)):
        assert len(list(verify._choice("caltech101", {"images": rows, "source": source}))) == count
    assert set(CUTS) >= reference.NOT_SETTLED


def test_images_without_names_are_not_compared() -> None:
    rows = [{"part": part, "label": 0, "key": None} for part in ("train", "val")]
    assert reference.index_differs("dtd", rows) == []
