from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.masked_layouts import write_folder
from vpeft.data import segmentation
from vpeft.data.images import UnreadableImage
from vpeft.data.segmentation import SegmentationData
from vpeft.dense.schema import SegmentationDataConfig

SIZES = ((24, 32), (40, 28))


def data(root: Path, seed: int = 0, **options: object) -> SegmentationData:
    settings = {"task": "own", "root": root, "split": "train", "batch_size": 4, **options}
    return SegmentationData(SegmentationDataConfig(**settings), (16, 16), seed)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "own", {"train": 10, "val": 3, "test": 3}, SIZES)


def epochs(made: SegmentationData, count: int = 2) -> list[dict[str, Tensor]]:
    loader = made.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += list(loader)
    return found


def equal(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("image", "mask", "index")
    )


def test_training_batches_are_crops_with_ids_of_the_table(root: Path) -> None:
    batches = epochs(data(root), 1)
    assert len(batches) == 2  # the last, smaller one is left out
    for batch in batches:
        assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 16, 16), torch.uint8)
        assert (batch["mask"].shape, batch["mask"].dtype) == ((4, 16, 16), torch.int64)
        assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 255}


def test_workers_give_the_same_batches_and_epochs_differ(root: Path) -> None:
    alone, helped = epochs(data(root)), epochs(data(root, workers=2))
    assert equal(alone, helped)
    assert not equal(alone[:2], alone[2:])
    assert not equal(alone, epochs(data(root, seed=1)))


def test_decoding_anew_gives_the_same_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = data(root)
    expected = epochs(kept)
    assert kept._read("train").cached
    monkeypatch.setattr(segmentation, "memory_limit", lambda: 0)
    anew = data(root)
    assert equal(epochs(anew), expected)
    assert not anew._read("train").cached


def test_a_resumed_run_goes_on_with_the_batch_that_follows(root: Path) -> None:
    whole = epochs(data(root))
    resumed = data(root)
    resumed.load_state_dict({"epoch": 1, "batch": 1})
    loader = resumed.train_dataloader()
    assert equal(list(loader), whole[3:])
    assert resumed.state_dict() == {"epoch": 1, "batch": 1}


def test_what_is_evaluated_keeps_the_size_of_its_mask(root: Path) -> None:
    made = data(root, eval_batch_size=3)
    batches = list(made.test_dataloader())
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 3, 16, 21), (1, 3, 23, 16), (1, 3, 16, 21)]
    assert [tuple(batch["mask"].shape) for batch in batches] == [(1, 24, 32), (1, 40, 28), (1, 24, 32)]
    assert [batch["index"].tolist() for batch in batches] == [[0], [1], [2]]
    assert made.files("test")[1].endswith("images/test/001.png")
    path = made.splits["test"].masks[1]
    assert np.array_equal(batches[1]["mask"][0].numpy(), np.asarray(Image.open(path)))


def test_images_of_one_size_are_evaluated_together(tmp_path: Path) -> None:
    made = data(write_folder(tmp_path / "own", {"train": 4, "test": 5}), eval_batch_size=3)
    assert [len(batch["image"]) for batch in made.test_dataloader()] == [3, 2]
    assert made.val_dataloader() == []


def test_a_mask_of_another_size_is_named_with_both_sizes(root: Path) -> None:
    path = root / "masks/train/003.png"
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"images/train/003\.png is 28 x 40 pixels and its mask .*003\.png is 31 x 24"):
        data(root).setup()


def test_an_image_that_is_turned_by_its_header_has_the_size_that_is_seen(root: Path) -> None:
    path = root / "images/test/000.png"
    with Image.open(path) as opened:
        turned = opened.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(path, exif=exif)
    made = data(root)
    made.setup("test")
    assert made._read("test").sizes[0] == (24, 32)


@pytest.mark.parametrize("part", ["train", "test"])
def test_ids_outside_the_table_are_found_before_training(root: Path, part: str) -> None:
    path = root / f"masks/{part}/000.png"
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(path)
    with pytest.raises(ValueError, match=rf"{path} has the id 7"):
        data(root).setup()


def test_of_masks_that_do_not_fit_those_evaluated_are_checked_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "memory_limit", lambda: 0)
    for part in ("train", "test"):
        Image.fromarray(np.full((24, 32), 7, np.uint8)).save(root / f"masks/{part}/000.png")
    with pytest.raises(ValueError, match=r"masks/test/000\.png has the id 7"):
        data(root).setup()
    with pytest.raises(ValueError, match=r"masks/train/000\.png has the id 7"):
        epochs(data(root), 1)


def test_an_image_that_is_none_is_named(root: Path) -> None:
    (root / "images/val/000.png").write_bytes(b"GIF")
    with pytest.raises(UnreadableImage, match=r"images/val/000\.png could not be read"):
        data(root).setup()


def test_the_label_zero_can_be_reduced(root: Path) -> None:
    plain, reduced = data(root), data(root, reduce_zero_label=True)
    ids, lower = (next(iter(made.test_dataloader()))["mask"] for made in (plain, reduced))
    assert torch.equal(lower, torch.where((ids == 0) | (ids == 255), 255, ids - 1))


def test_crop_and_scale_follow_the_backbone_unless_given(root: Path) -> None:
    assert (data(root).changes.crop, data(root).changes.scale) == ((16, 16), (64, 16))
    given = data(root, crop=20, short_side=30).changes
    assert (given.crop, given.scale) == ((20, 20), (120, 30))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "ade20k", "root": None}, r"data\.root is not set.*python data_prep/ade20k\.py --root DIR"),
        ({"task": "scens", "root": None}, r"did you mean 'scenes'.*data_prep/embedded\.py --tasks scenes"),
        ({"task": "ade20k", "root": Path("absent")}, r"data\.root absent does not exist.*ade20k\.py --root absent"),
        ({"task": "scenes", "root": Path("absent")}, r"embedded\.py --tasks scenes --root absent"),
        ({"task": "ade20k", "root": Path("docs")}, r"docs does not hold ADE20K.*data_prep/ade20k\.py --root docs"),
        ({"task": "own", "root": Path("README.md")}, r"README\.md is not a folder.*images/, masks/ and classes\.txt"),
    ],
)
def test_a_missing_root_names_the_command_that_makes_it(
    options: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ValueError, match=said):
        SegmentationData(SegmentationDataConfig(**options), (16, 16), 0)  # type: ignore[arg-type]


def test_a_folder_of_ones_own_does_not_carry_the_name_of_a_published_set(root: Path) -> None:
    assert data(root, task="ade20k", format="folder").provenance["task"] == "own"


@pytest.mark.skipif(find_spec("mmseg") is None, reason="needs mmsegmentation: the extra dense")
def test_the_transforms_of_mmsegmentation_make_the_same_batches(root: Path) -> None:
    options = {"crop": 32, "short_side": 64, "ratio_min": 1.0}
    native, theirs = data(root, transforms="native", **options), data(root, **options)
    assert (native.provenance["transforms"], theirs.provenance["transforms"]) == ("native", "mmseg")
    assert equal(epochs(native), epochs(theirs))
