"""Published data sets of open vocabularies as they lie on disk, and what is made of their images."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vpeft.data.openvocab import OpenVocabData, resized, shorter_side
from vpeft.data.openvocab_benchmarks import BENCHMARKS, class_names, locate
from vpeft.dense.openvocab_schema import OpenVocabDataConfig


def write(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)


def picture(path, height=6, width=8):
    write(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def masks(ids, dtype=np.uint8, shape=(6, 8)):
    return np.resize(np.array(ids, dtype), shape)


@pytest.fixture
def root(tmp_path):
    """One image of every data set."""
    layout = {
        "ade150": ("ADEChallengeData2016/images/validation/a.jpg", "annotations/validation/a.png", masks([0, 1, 150])),
        "ade847": (
            "ADE20K_2021_17_01/images_detectron2/validation/a.jpg",
            "annotations_detectron2/validation/a.tif",
            masks([0, 255, 846, 65535], np.uint16),
        ),
        "pc59": ("pcontext/val/image/a.jpg", "val/label/a.png", masks([0, 58, 255])),
        "pc459": ("pcontext_full/val/image/a.jpg", "val/label/a.tif", masks([0, 255, 458, 65535], np.uint16)),
        "voc20": ("VOC2012/JPEGImages/a.jpg", "SegmentationClass/a.png", masks([0, 1, 20, 255])),
        "coco_stuff171": ("coco/val2017/a.jpg", "stuffthingmaps/val2017/a.png", masks([0, 10, 12, 181, 255])),
    }
    for name, (image, mask, ids) in layout.items():
        picture(tmp_path / image)
        write(tmp_path / BENCHMARKS[name].folder / mask, ids)
    (tmp_path / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found", "ignore"),
    [
        ("ade150", [255, 0, 149], 255),
        ("ade847", [0, 255, 846, 65535], 65535),
        ("pc59", [0, 58, 255], 255),
        ("pc459", [0, 255, 458, 65535], 65535),
        ("voc20", [255, 0, 19, 255], 255),
        ("coco_stuff171", [0, 10, 11, 170, 255], 255),
    ],
)
def test_masks_are_class_ids_and_what_is_ignored(root, name, found, ignore):
    one = locate(name, root, "val", check_counts=False)
    assert one.table.ignore == ignore
    assert np.array_equal(one.read(one.files.masks[0]), np.resize(found, (6, 8)))


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("ade150", 150, "wall", "flag"),
        ("ade847", 847, "wall", "adding machine, totalizer, totaliser"),
        ("pc59", 59, "aeroplane", "wood"),
        ("pc459", 459, "accordion", "wool"),
        ("voc20", 20, "aeroplane", "tv"),
        ("coco_stuff171", 171, "person", "wood"),
    ],
)
def test_names_are_the_official_prompts(name, count, first, last):
    names = class_names(name)
    assert len(names) == len(set(names)) == count
    assert (names[0], names[-1]) == (first, last)


def test_names_keep_their_commas():
    assert sum("," in name for name in class_names("ade847")) == 217
    assert class_names("ade847")[11] == "person, individual, someone, somebody, mortal, soul"
    assert class_names("ade150")[6] == "road, route"
    assert class_names("voc20")[10] == "diningtable"


def test_the_folder_of_one_data_set_is_a_root_too(root):
    one = locate("pc59", root / "pcontext", "val", check_counts=False)
    assert len(one.files) == 1


def test_another_number_of_images_than_was_published_is_refused(root):
    with pytest.raises(ValueError, match=r"hold 1 images of val, and 1449 are published.*check_counts"):
        locate("voc20", root, "val")


def test_counts_are_those_of_the_official_log():
    counts = {name: known.counts["val"] for name, known in BENCHMARKS.items()}
    assert counts == {
        "ade150": 2000, "ade847": 2000, "pc59": 5104, "pc459": 5104, "voc20": 1449, "coco_stuff171": 5000,
    }  # fmt: skip


def test_voc_without_a_list_says_so(root):
    shutil.rmtree(root / "VOC2012/ImageSets")
    with pytest.raises(ValueError, match=r"val\.txt is missing, which lists the images"):
        locate("voc20", root, "val", False)


def test_images_of_voc_without_foreground_are_dropped(root):
    picture(root / "VOC2012/JPEGImages/b.jpg")
    write(root / "VOC2012/SegmentationClass/b.png", masks([0, 255]))
    (root / "VOC2012/ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    assert [path.stem for path in locate("voc20", root, "val", False).files.images] == ["a"]


def test_a_missing_folder_names_what_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"pcontext_full/, which comes from prepare_pcontext_sem_seg_459cls\.py"):
        locate("pc459", tmp_path, "val")


def test_an_unknown_data_set_has_a_near_one():
    with pytest.raises(ValueError, match=r"no data set 'ade84'; did you mean 'ade847'"):
        locate("ade84", ".", "val")


def test_a_part_that_is_not_published_here():
    with pytest.raises(ValueError, match=r"pc59 has no train part here; it has val"):
        locate("pc59", ".", "train")


def test_8_bits_where_255_is_a_class_are_refused(root):
    (root / "ADE20K_2021_17_01/annotations_detectron2/validation/a.tif").unlink()
    write(root / "ADE20K_2021_17_01/annotations_detectron2/validation/a.png", masks([0, 1]))
    one = locate("ade847", root, "val", False)
    with pytest.raises(ValueError, match="of 847 classes 255 is one"):
        one.read(one.files.masks[0])


def test_an_id_that_is_no_category_of_coco_is_refused(root):
    write(root / "coco/stuffthingmaps/val2017/a.png", masks([11]))
    one = locate("coco_stuff171", root, "val", False)
    with pytest.raises(ValueError, match=r"a\.png has the id 11, which is no category"):
        one.read(one.files.masks[0])


def own(folder, count=10):
    for i in range(count):
        picture(folder / f"images/{i}.jpg", 40 + i, 60)
        write(folder / f"masks/{i}.png", masks([0, 1, 1, 255], shape=(40 + i, 60)))
    (folder / "classes.txt").write_text("cat\nsofa\n")
    return folder


def data(folder, **options):
    settings = {"train": str(folder), "tests": [str(folder)], "crop": 32, "sizes": [24, 48], "batch_size": 4}
    return OpenVocabData(OpenVocabDataConfig(**(settings | {"workers": 0, "short_side": 32} | options)))


def test_training_batches_are_crops_padded_with_128_and_ignored(tmp_path):
    module = data(own(tmp_path / "pets"), sizes=[24], distort=False)
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["mask"].dtype == torch.int64
    assert (batch["image"][:, :, 24:] == 128).all()
    assert (batch["mask"][:, 24:] == 255).all()
    assert set(batch["mask"][:, :24].unique().tolist()) == {0, 1, 255}


def test_batches_depend_on_seed_and_epoch_alone(tmp_path):
    folder = own(tmp_path / "pets")
    first, again = (next(iter(data(folder).train_dataloader())) for _ in range(2))
    assert torch.equal(first["image"], again["image"])
    loader = data(folder).train_dataloader()
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))["image"], first["image"])


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path):
    folder = own(tmp_path / "pets", count=20)
    first = list(data(folder).train_dataloader())
    again = data(folder)
    again.load_state_dict({"epoch": 0, "batch": 1})
    rest = list(again.train_dataloader())
    assert len(rest) == len(first) - 1 > 0
    assert again.state_dict() == {"epoch": 0, "batch": 1}
    assert torch.equal(rest[0]["image"], first[1]["image"])


def test_an_evaluated_image_is_resized_and_its_mask_is_not(tmp_path):
    module = data(own(tmp_path / "pets"))
    assert [one.name for one in module.test_sets] == ["pets"]
    (loader,) = module.val_dataloader()
    batch = next(iter(loader))
    assert batch["image"].shape[-2] == 32
    assert batch["mask"].shape[-2] >= 40
    assert len(loader) == 2


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    folder = own(tmp_path / "pets")
    for i in range(10):
        write(folder / f"masks/{i}.png", masks([0, 1], shape=(5, 5)))
    with pytest.raises(ValueError, match="has the size of its image"):
        next(iter(data(folder).val_dataloader()[0]))


def test_a_data_set_named_twice_is_refused(tmp_path):
    folder = str(own(tmp_path / "pets"))
    with pytest.raises(ValueError, match="names a data set twice"):
        data(folder, tests=[folder, folder])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((480, 640), (640, 853)), ((640, 480), (853, 640)), ((100, 1000), (256, 2560)), ((333, 500), (640, 961))],
)
def test_the_shorter_side_unless_the_longer_one_passes_its_bound(shape, size):
    assert shorter_side(shape, 640, 2560) == size


def test_a_resized_image_is_rgb_planes():
    assert resized(Image.new("RGB", (20, 10)), 8, 100).shape == (3, 8, 16)
