"""VTAB's label maps at their bounds, and the splits that a data set does not bring itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vtab1k.readers import fakes
from vpeft.vtab1k.readers import caltech101, clevr, kitti

CLEVR_BOUNDS = [
    (0.001, 0),
    (8.0, 0),
    (8.0000001, 0),  # 8 as a float32, in which TFDS stores it
    (8.000001, 1),
    (8.5, 1),
    (8.51, 2),
    (9.0, 2),
    (9.5, 3),
    (9.51, 4),
    (10.0, 4),
    (10.01, 5),
    (100.0, 5),
]


@pytest.mark.parametrize(("depth", "label"), CLEVR_BOUNDS)
def test_clevr_distance_is_the_last_bound_below_the_nearest_object(depth: float, label: int, tmp_path: Path) -> None:
    def change(scenes: list[dict]) -> None:
        scenes[0]["objects"] = [{"pixel_coords": [0, 0, z]} for z in (depth + 1, depth, depth + 2)]

    fakes.clevr(tmp_path, fakes.clevr_members(change))
    assert clevr.read(tmp_path, "clevr_dist")["train"][0].label == label
    assert clevr.read(tmp_path, "clevr_count")["train"][0].label == 0


KITTI_BOUNDS = [
    ([("Car", "8.0")], 0),
    ([("Car", "8.0000001")], 0),
    ([("Car", "8.01")], 1),
    ([("Van", "20.0")], 1),
    ([("Truck", "20.01")], 2),
    ([("Car", "999.0")], 2),
    ([("Car", "-3.0")], 0),
    ([("Car", "30.0"), ("Van", "12.0"), ("Tram", "1.0"), ("Pedestrian", "2.0")], 1),
    ([("Tram", "5.0"), ("DontCare", "-1000.0")], 3),
    ([], 3),
]


@pytest.mark.parametrize(("street", "label"), KITTI_BOUNDS)
def test_kitti_distance_is_that_of_the_nearest_vehicle(street: list, label: int, tmp_path: Path) -> None:
    archives = fakes.kitti_members()
    rows = [f"{kind} 0.00 0 -1.57 2.0 3.0 30.0 12.0 1.5 1.6 3.9 1.84 1.47 {z} -1.56\n" for kind, z in street]
    archives["data_object_label_2.zip"]["training/label_2/000007.txt"] = "".join(rows).encode()
    fakes.kitti(tmp_path, archives)
    examples = [example for split in kitti.read(tmp_path, "kitti").values() for example in split]
    assert [example.label for example in examples if example.key == "000007.png"] == [label]


def test_no_drive_of_kitti_is_in_two_splits(tmp_path: Path) -> None:
    archives = fakes.kitti_members()
    fakes.kitti(tmp_path, archives)
    order = archives["devkit_object.zip"]["mapping/train_rand.txt"].decode().split(",")
    drives = {
        split: {(int(order[int(str(example.key)[:6])]) - 1) // 3 for example in examples}
        for split, examples in kitti.read(tmp_path, "kitti").items()
    }
    assert {split: len(found) for split, found in drives.items()} == {"train": 24, "validation": 3, "test": 3}
    assert not drives["train"] & drives["validation"]
    assert not drives["test"] & (drives["train"] | drives["validation"])


def test_thirty_files_of_each_caltech_folder_are_train_and_the_background_counts_its_stray_file(tmp_path: Path) -> None:
    fakes.caltech101(tmp_path)
    splits = caltech101.read(tmp_path, "caltech101")
    per_class = [sum(example.label == label for example in splits["train"]) for label in range(102)]
    # The stray file is drawn here: one image fewer, as in TFDS's catalogue.
    assert sorted(per_class) == [29] + [30] * 101
    assert per_class[4] == 29
    keys = {example.key for examples in splits.values() for example in examples}
    assert "BACKGROUND_Google/tmp" not in keys
    assert len(keys) == 102 * 31 + 51 * 2


def test_with_the_467_images_of_the_true_background_its_stray_file_is_not_drawn(tmp_path: Path) -> None:
    members = fakes.caltech101_members()
    folder = "101_ObjectCategories/BACKGROUND_Google"
    members |= {f"{folder}/image_{i:04d}.jpg": members[f"{folder}/image_0001.jpg"] for i in range(1, 468)}
    fakes.caltech101(tmp_path, members)
    assert len(caltech101.read(tmp_path, "caltech101")["train"]) == 3060  # VTAB's number
