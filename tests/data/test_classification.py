from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from tests.data.layouts import write_folder, write_image, write_vtab
from vpeft.config import DataConfig
from vpeft.data import ClassificationData, classification
from vpeft.data.images import UnreadableImage


def make(root: Path | None, task: str = "eurosat", **options: Any) -> ClassificationData:
    config = DataConfig(task=task, root=root, **{"batch_size": 16, "eval_batch_size": 16, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ClassificationData(config, (8, 6), "bicubic", seed=5)


def test_batches_have_the_promised_shapes(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    data = make(tmp_path, split="train800")
    batch = next(iter(data.train_dataloader()))
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "image": (torch.uint8, (16, 3, 8, 6)),
        "label": (torch.int64, (16,)),
        "index": (torch.int64, (16,)),
    }
    assert len(data.val_dataloader()) == 1
    assert [len(batch["label"]) for batch in data.test_dataloader()] == [16, 4]


def test_classes_and_provenance_are_known_before_anything_is_decoded(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    for image in folder.rglob("*.png"):
        image.write_bytes(b"unreadable")
    data = make(tmp_path, split="train800")
    assert data.classes[0] == "AnnualCrop"
    assert data.provenance["counts"] == {"train": 40, "val": 10, "test": 20}
    json.dumps(data.provenance)


def test_without_val_there_is_no_loader_for_it(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    assert make(tmp_path).val_dataloader() == []


def test_evaluation_keeps_the_order_and_changes_nothing(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    data = make(tmp_path, augment="crop_flip")
    batches = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(20))
    plain = make(tmp_path)
    assert all(torch.equal(b["image"], p["image"]) for b, p in zip(batches, plain.test_dataloader(), strict=True))
    assert data.files("test")[3].endswith("images/test/000003.png")


@pytest.mark.parametrize("limit", [1 << 40, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_test_image_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, workers: int
) -> None:
    monkeypatch.setattr(classification, "memory_limit", lambda: limit)
    folder = write_vtab(tmp_path)
    (folder / "images/test/000019.png").write_bytes(b"")
    data = make(tmp_path, workers=workers)
    with pytest.raises(UnreadableImage, match=r"test/000019\.png is empty .* data\.on_error skip") as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


def test_skipping_is_not_advised_where_it_was_tried(tmp_path: Path) -> None:
    for image in write_vtab(tmp_path).rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="None of the 50 images") as caught:
        make(tmp_path, on_error="skip").setup("fit")
    assert "data.on_error" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "devices", "kept"), [(70, 1, [True, True]), (69, 1, [True, False]), (140, 2, [True, True]), (70, 2, [])]
)
def test_splits_and_processes_share_one_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, devices: int, kept: list[bool]
) -> None:
    # 50 images to train on and 20 for the test, 3 x 8 x 6 bytes each
    monkeypatch.setattr(classification, "memory_limit", lambda: budget * 3 * 8 * 6)
    write_vtab(tmp_path)
    data = make(tmp_path)
    data.trainer = SimpleNamespace(num_devices=devices)  # type: ignore[assignment]
    data.setup("fit")
    assert [data._decoded(part).cached for part in ("train", "test")] == (kept or [False, True])


def test_setup_for_the_test_needs_the_test_images_only(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    (folder / "images/train/000000.png").unlink()
    data = make(tmp_path)
    data.setup("test")
    assert len(data.test_dataloader()) == 2


def test_skipped_images_are_counted_in_the_row(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    (folder / "images/train/000000.png").write_bytes(b"")
    (folder / "images/test/000001.png").write_bytes(b"text")
    data = make(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=r"Left out of (train|test): .*png"):
        data.setup("fit")
    assert data.provenance["skipped"] == 2
    assert data.provenance["counts"] == {"train": 49, "val": 0, "test": 19}


def test_jpeg_warns_and_is_recorded(tmp_path: Path) -> None:
    write_vtab(tmp_path, suffix=".jpg")
    config = DataConfig(task="eurosat", root=tmp_path)
    with pytest.warns(UserWarning, match="compressed with loss"):
        data = ClassificationData(config, (8, 8), "bicubic", 0)
    assert data.provenance["lossy"] is True
    assert "compressed with loss" in data.provenance["warning"]


def test_the_config_overrides_the_interpolation_of_the_backbone(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    assert make(tmp_path).provenance["interpolation"] == "bicubic"
    assert make(tmp_path, interpolation="bilinear").provenance["interpolation"] == "bilinear"


def test_a_folder_of_ones_own_needs_no_task(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    data = make(tmp_path / "pets", task="digits")
    assert data.classes == ["cat", "dog"]
    assert (data.provenance["format"], data.provenance["task"]) == ("folder", "pets")


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ("digits", r"python data_prep/embedded\.py --tasks digits --root .*nowhere"),
        ("cifar100", r"data\.root/cifar/.* python data_prep/vtab1k\.py"),
        ("my_own", r"train/CLASS/ and test/CLASS/.*python data_prep/embedded\.py --tasks all --root .*nowhere"),
    ],
)
def test_a_missing_root_names_the_command_that_makes_it(tmp_path: Path, task: str, command: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.root .*nowhere does not exist\. .*{command}"):
        make(tmp_path / "nowhere", task)


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is not a folder"):
        make(tmp_path / "file")


def test_a_root_without_the_task_is_named(tmp_path: Path) -> None:
    write_vtab(tmp_path, "eurosat")
    with pytest.raises(ValueError, match=r"holds no task 'dtd'. dtd needs a folder in VTAB-1k layout"):
        make(tmp_path, "dtd")
    with pytest.raises(ValueError, match=r"'dtt' is not known; did you mean 'dtd'"):
        make(tmp_path, "dtt")


def test_a_vtab_task_without_a_root_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"data\.root is not set, .* svhn needs a folder in VTAB-1k layout"):
        make(None, "svhn")


def test_every_process_has_its_own_part(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    found = []
    for rank in range(2):
        data = make(tmp_path)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2)  # type: ignore[assignment]
        found.append(torch.cat([batch["index"] for batch in data.train_dataloader()]).tolist())
    assert len(found[0]) == len(found[1]) == 25
    assert sorted(found[0] + found[1]) == list(range(50))


class Recorder(L.LightningModule):
    """Notes which images each batch held, and saves where it is told to."""

    def __init__(self, save: tuple[int, int | None] | None = None, path: Path = Path()) -> None:
        super().__init__()
        self.save, self.path = save, path
        self.seen: list[tuple[int, list[int], int]] = []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen.append((self.current_epoch, batch["index"].tolist(), int(batch["image"].sum())))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        pass

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._maybe_save((self.trainer.current_epoch, batch_idx + 1))

    def on_train_epoch_end(self) -> None:
        self._maybe_save((len({epoch for epoch, *_ in self.seen}) - 1, None))

    def _maybe_save(self, place: tuple[int, int | None]) -> None:
        if place == self.save:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], 0.1)


def fit(root: Path, task: Recorder, workers: int, checkpoint: Path | None = None) -> list[tuple[int, list[int], int]]:
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=root,
    )
    data = make(root, split="train800", augment="flip", workers=workers)
    trainer.fit(task, data, ckpt_path=checkpoint)
    return task.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("save", "done"), [((0, 1), 1), ((1, 2), 5), ((1, None), 6)])
def test_a_resumed_run_sees_the_batches_the_other_had_left(
    tmp_path: Path, workers: int, save: tuple[int, int | None], done: int
) -> None:
    write_vtab(tmp_path)
    path = tmp_path / "at.ckpt"
    whole = fit(tmp_path, Recorder(save, path), workers)
    assert [epoch for epoch, *_ in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert whole[0][1] != whole[3][1]
    assert fit(tmp_path, Recorder(), workers, path) == whole[done:]


def test_an_aspect_keeping_crop_is_used_when_asked_for(tmp_path: Path) -> None:
    folder = write_vtab(tmp_path)
    for image in folder.rglob("*.png"):
        write_image(image, 1, (40, 8))
    squash, crop = (next(iter(make(tmp_path, resize=how).test_dataloader()))["image"] for how in ("squash", "crop"))
    assert not torch.equal(squash, crop)
