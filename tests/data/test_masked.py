from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.masked_layouts import CLASSES, write_folder, write_pair
from vpeft.data.masked import pair, read, read_ade20k


def names(split: object) -> list[str]:
    return [path.stem for path in split.images]  # type: ignore[attr-defined]


def test_parts_are_read_and_val_can_be_trained_on(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 4, "val": 2, "test": 3})
    listing = read(root, "own", "train")
    assert (len(listing.train), len(listing.val), len(listing.test)) == (4, 2, 3)
    assert all(image.stem == mask.stem for image, mask in zip(listing.test.images, listing.test.masks, strict=True))
    assert listing.classes.names == ("sky", "road", "tree")
    both = read(root, "own", "trainval")
    assert (len(both.train), len(both.val), len(both.test)) == (6, 0, 3)


def test_without_a_test_part_val_is_the_test(tmp_path: Path) -> None:
    listing = read(write_folder(tmp_path, {"train": 4, "val": 2}), "own", "trainval")
    assert (len(listing.train), len(listing.val), len(listing.test)) == (4, 0, 2)
    assert "test is the validation part" in listing.provenance["statement"]


def test_a_folder_without_parts_is_cut_the_same_way_every_time(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    first, second = read(root, "own", "train"), read(root, "own", "trainval")
    assert (len(first.train), len(first.val), len(first.test)) == (13, 3, 4)
    assert names(first.test) == names(second.test)
    assert sorted(names(first.train) + names(first.val)) == sorted(names(second.train))


def test_the_layout_of_ade20k_is_read_with_its_own_table(tmp_path: Path) -> None:
    for part, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            write_pair(tmp_path / "images" / part, tmp_path / "annotations" / part, f"{part}{i}", i)
    listing = read_ade20k(tmp_path)
    assert (len(listing.train), len(listing.val), len(listing.test)) == (3, 0, 2)
    assert (len(listing.classes.names), listing.reduce_zero_label) == (150, True)


def test_pairs_follow_a_list_of_names(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    assert names(pair(root / "images", root / "masks", ["007", "002"])) == ["007", "002"]
    with pytest.raises(ValueError, match="holds no image '999', which a list names"):
        pair(root / "images", root / "masks", ["999"])


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "masks/003.png").unlink()
    with pytest.raises(
        ValueError, match=r"The image .*images/003\.png has no mask: .*masks holds no 003\.\* \(1 such\)"
    ):
        read(root, "own", "train")
    (root / "images/003.png").unlink()
    (root / "images/005.png").unlink()
    with pytest.raises(ValueError, match=r"The mask .*masks/005\.png has no image"):
        read(root, "own", "train")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images is missing; images are in images/ and their masks in masks/"):
        read(tmp_path, "own", "train")
    root = write_folder(tmp_path / "a", {"train": 2})
    with pytest.raises(ValueError, match=r"images has no val and no test; it needs images/train"):
        read(root, "own", "train")
    root = write_folder(tmp_path / "b", {"test": 2})
    with pytest.raises(ValueError, match=r"images has no train"):
        read(root, "own", "train")
    root = write_folder(tmp_path / "c")
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt is missing"):
        read(root, "own", "train")
    (root / "classes.txt").write_text(CLASSES)
    (root / "images/003.jpg").write_bytes((root / "images/003.png").read_bytes())
    with pytest.raises(ValueError, match="differ only in their suffix"):
        read(root, "own", "train")
    (tmp_path / "d/images").mkdir(parents=True)
    with pytest.raises(ValueError, match="images holds no image"):
        read(tmp_path / "d", "own", "train")


def test_one_image_cannot_be_cut(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a", 0)
    with pytest.raises(ValueError, match="holds one image; it takes at least one to train on and one to test on"):
        read(tmp_path, "own", "trainval")
