from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn

from mllm.data.module import MultimodalData
from mllm.data_schema import DataConfig, FilesConfig
from mllm.sequence import IGNORED, encode
from mllm.templates import find
from tests.mllm.data.files import write_talks
from tests.mllm.vocabularies import by_bytes
from vpeft.data.images import UnreadableImage

COUNT, TOKENS = 30, 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = write_talks(tmp_path, COUNT)
    (tmp_path / "val.json").write_text(json.dumps(records[:7]))
    return tmp_path


def data(root: Path, by_index: bool = False, seed: int = 3, reader: bool = False, **change: Any) -> MultimodalData:
    files = FilesConfig(train=["talks.json"], val=["val.json"])
    config = DataConfig(
        task="talks", root=root, files=files, template="bare", max_length=200, batch_size=4, eval_batch_size=3
    )
    config = replace(config, **change)
    tokenizer = by_bytes()
    mean = (0.5, 0.4, 0.3)
    other = tokenizer if reader else None
    return MultimodalData(config, tokenizer, TOKENS, (8, 8), "bilinear", mean, seed, by_index, other)


def epochs(module: MultimodalData, count: int = 2) -> list[list[dict[str, Tensor]]]:
    loader, found = module.train_dataloader(), []
    for epoch in range(count):
        sampler: Any = loader.sampler
        sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def assert_same(first: Iterable[dict[str, Tensor]], second: Iterable[dict[str, Tensor]]) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


ORDERS: list[dict[str, Any]] = [{}, {"pack": True}, {"group_by_length": True}]


@pytest.mark.parametrize("order", ORDERS)
def test_batches_are_the_same_for_any_number_of_workers(root: Path, order: dict[str, Any]) -> None:
    alone, helped = epochs(data(root, **order)), epochs(data(root, **order, workers=2))
    for ours, theirs in zip(alone, helped, strict=True):
        assert_same(ours, theirs)
    assert not torch.equal(alone[0][0]["input_ids"], alone[1][0]["input_ids"])
    other = epochs(data(root, **order, seed=4), 1)
    assert not torch.equal(alone[0][0]["input_ids"], other[0][0]["input_ids"])


@pytest.mark.parametrize("order", [{}, {"group_by_length": True}])
def test_every_sample_comes_once_an_epoch_with_its_image(root: Path, order: dict[str, Any]) -> None:
    module = data(root, **order)
    (batches,) = epochs(module, 1)
    seen: list[int] = []
    for batch in batches:
        images = iter(batch["images"])
        for row, i in enumerate(batch["index"].tolist()):
            seen.append(i)
            sample = module.samples("train")[i]
            whole = encode(sample, find("bare"), by_bytes(), TOKENS, 200)
            assert torch.equal(batch["input_ids"][row, : len(whole)], whole.ids)
            assert torch.equal(batch["labels"][row, : len(whole)], whole.labels)
            for source in sample.images:
                position = torch.tensor([module.pictures.position(source)])
                assert torch.equal(next(images), module.pictures.take(position)[0])
    assert sorted(seen) == list(range(COUNT))


def test_packed_rows_hold_every_sample_once(root: Path) -> None:
    module = data(root, pack=True)
    first, second = epochs(module)
    for batches in (first, second):
        starts = sum(int(((b["position_ids"] == 0) & (b["segments"] > 0)).sum()) for b in batches)
        tokens = sum(int((b["segments"] > 0).sum()) for b in batches)
        assert (starts, tokens) == (COUNT, int(module.lengths("train").sum()))
        assert sum(len(b["images"]) for b in batches) == sum(len(s.images) for s in module.samples("train"))
        assert sorted(i for b in batches for i in b["index"].tolist()) == list(range(COUNT))
    assert len(first) == len(second)
    assert module.provenance["filled"] > 0.6
    assert module.provenance["rows"] == sum(len(b["input_ids"]) for b in first)


def test_positions_of_images_are_served_for_features_that_are_kept(root: Path) -> None:
    (pixels,), (positions,) = epochs(data(root), 1), epochs(data(root, by_index=True), 1)
    module = data(root, by_index=True)
    for one, other in zip(pixels, positions, strict=True):
        assert "images" not in other
        assert torch.equal(module.pictures.take(other["image_index"]), one["images"])
    assert len(module.pictures) == 20


def test_a_connector_that_reads_gets_the_questions(root: Path) -> None:
    ((batch, *_),) = epochs(data(root, reader=True), 1)
    assert batch["text_ids"].shape == batch["text_mask"].shape
    assert len(batch["text_ids"]) == len(batch["images"])


def test_val_is_in_order_and_prompts_are_padded_on_the_left(root: Path) -> None:
    module = data(root)
    loader: Any = module.val_dataloader()
    assert torch.cat([batch["index"] for batch in loader]).tolist() == list(range(7))
    for batch in module.loader("val", prompts=True):
        assert (batch["labels"] == IGNORED).all()
        assert (batch["attention_mask"][:, -1] == 1).all()
    assert module.test_dataloader() == []


class Recorder(L.LightningModule):
    """Keeps what it was given, and stops after some batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[dict[str, Tensor]] = []
        self.stop_after = stop_after

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen.append({key: value.clone() for key, value in batch.items()})
        return self.weight**2

    def on_train_batch_end(self, *args: Any) -> None:
        if len(self.seen) == self.stop_after:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "stopped.ckpt")
            raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: MultimodalData, folder: Path, stop_after: int | None = None, resume: str | None = None) -> Recorder:
    recorder = Recorder(stop_after)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    try:
        trainer.fit(recorder, module, ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert stop_after
    return recorder


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_resumed_within_an_epoch_sees_the_batches_it_had_left(root: Path, order: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = fit(data(root, **order), root).seen
        stop = len(whole) // 3 + 2
        begun = fit(data(root, **order), root, stop).seen
        rest = fit(data(root, **order), root, resume=str(root / "stopped.ckpt")).seen
    assert len(begun) == stop
    assert_same([*begun, *rest], whole)


@pytest.mark.parametrize("kept", [True, False])
def test_samples_without_their_image_stop_or_are_left_out_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    (root / "images/3.png").unlink()
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        data(root).setup()
    module = data(root, on_missing="skip")
    with pytest.warns(UserWarning, match=r"Left out: .*3\.png"):
        module.setup()
    assert (len(module.samples("train")), len(module.samples("val"))) == (COUNT - 1, 6)
    assert (module.provenance["skipped"], module.skipped) == (2, 1)
    assert sum(len(batch["index"]) for batch in epochs(module, 1)[0]) == COUNT - 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_lost_in_the_middle_of_a_run_stops_it_or_is_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    strict, lenient = data(root, workers=workers), data(root, on_missing="skip", workers=workers)
    strict.setup()
    lenient.setup()
    (root / "images/3.png").unlink()
    with pytest.raises(UnreadableImage, match=r"3\.png could not be read .*With data.on_missing skip"):
        epochs(strict, 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (batches,) = epochs(lenient, 1)
    if workers == 0:
        assert [str(one.message) for one in said if "3.png was lost" in str(one.message)]
    assert lenient.skipped == 1
    for batch in batches:
        for row, i in enumerate(batch["index"].tolist()):
            assert bool((batch["labels"][row] == IGNORED).all()) == (i == 3)


def test_a_set_of_which_nothing_is_left_is_refused(root: Path) -> None:
    for file in (root / "images").iterdir():
        file.unlink()
    records = [record for record in json.loads((root / "talks.json").read_text()) if "image" in record]
    for name in ("talks.json", "val.json"):
        (root / name).write_text(json.dumps(records))
    with pytest.raises(ValueError, match="Not one sample of train has all its images"):
        data(root, on_missing="skip").setup()


def test_a_sample_that_does_not_fit_is_found_before_training(root: Path) -> None:
    longest = max(data(root).lengths("train"))
    data(root, max_length=int(longest)).setup()
    with pytest.raises(ValueError, match=r"talks\.json: sample 'talk\d+' has \d+ tokens, and its first answer begins"):
        data(root, max_length=6).setup()


def test_samples_whose_text_is_cut_are_counted_and_said_in_one_line(root: Path) -> None:
    whole = data(root)
    lengths = whole.lengths("train")
    assert whole.provenance["cut"] == {"train": 0, "val": 0, "test": 0}
    limit = int(max(lengths)) - 3
    module = data(root, max_length=limit)
    with pytest.warns(UserWarning, match="lose their last words") as said:
        module.setup()
    count, tokens = int((lengths > limit).sum()), int((lengths - limit).clip(0).sum())
    assert module.provenance["cut"]["train"] == count > 0
    (line,) = (str(one.message) for one in said)
    assert line.startswith(f"Samples longer than data.max_length {limit} lose their last words: {count} of train")
    assert f"({tokens} tokens)" in line


def test_padding_has_the_mean_colour_cut_off(root: Path) -> None:
    module = data(root)
    assert module.look.fill == (127, 102, 76)
    assert module.pictures.take(torch.tensor([0]))[0, :, 0, 0].tolist() == [127, 102, 76]
    assert module.provenance["fill"] == [127, 102, 76]


@pytest.mark.parametrize("order", ORDERS)
def test_every_process_has_its_own_part(root: Path, order: dict[str, Any]) -> None:
    module, found = data(root, **order), []
    for rank in (0, 1):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2)  # type: ignore[assignment]
        found.append(epochs(module, 1)[0])
    assert len(found[0]) == len(found[1])
    tokens = [sum(int(batch["attention_mask"].sum()) for batch in part) for part in found]
    assert sum(tokens) >= int(module.lengths("train").sum()) > max(tokens)


def test_only_the_parts_that_are_asked_for_are_read(root: Path) -> None:
    whole = data(root)
    files = FilesConfig(train=["talks.json"], val=["val.json"])
    config = replace(whole.config, files=files)
    only = MultimodalData(config, by_bytes(), TOKENS, (8, 8), "bilinear", (0.5, 0.4, 0.3), 3, parts=["val"])
    assert set(only.provenance["counts"]) == {"val"}
    assert len(only.pictures) < len(whole.pictures)
    assert list(only.samples("val")) == list(whole.samples("val"))
    assert only.preparation["question"] == "{}"
