from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.layouts import write_image
from vpeft.data import cache
from vpeft.data.cache import Images, memory_limit
from vpeft.data.images import UnreadableImage
from vpeft.data.listing import Split
from vpeft.data.loader import Augment, Batches, EpochSampler, make_loader

NO_LIMIT = 1 << 40


def split_of(folder: Path, count: int) -> Split:
    for i in range(count):
        write_image(folder / f"{i}.png", i)
    return Split([folder / f"{i}.png" for i in range(count)], [i % 3 for i in range(count)])


def images_of(split: Split, size: int = 8, skip: bool = False, limit: int = NO_LIMIT) -> Images:
    return Images(split, (size, size), "squash", "bilinear", skip, limit)


def epochs(images: Images, workers: int, augment: Augment = "none", count: int = 2) -> list[list[dict[str, Tensor]]]:
    sampler = EpochSampler(len(images), 5, seed=3, shuffle=True)
    loader = make_loader(Batches(images, (7, 7) if augment == "crop_flip" else (8, 8), 3, augment), sampler, workers)
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def positions(sampler: EpochSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [position for _, batch in sampler for position in batch]


@pytest.mark.parametrize("augment", ["none", "flip", "crop_flip"])
def test_batches_are_the_same_for_any_number_of_workers(tmp_path: Path, augment: Augment) -> None:
    images = images_of(split_of(tmp_path, 17))
    alone, helped = epochs(images, 0, augment), epochs(images, 2, augment)
    for ours, theirs in zip([b for e in alone for b in e], [b for e in helped for b in e], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("image", "label", "index"))
    assert not torch.equal(alone[0][0]["index"], alone[1][0]["index"])


def test_every_image_comes_once_an_epoch_with_its_label(tmp_path: Path) -> None:
    images = images_of(split_of(tmp_path, 17))
    for epoch in epochs(images, 0):
        index = torch.cat([batch["index"] for batch in epoch])
        assert sorted(index.tolist()) == list(range(17))
        assert torch.equal(torch.cat([batch["label"] for batch in epoch]), index % 3)
        assert torch.equal(torch.cat([batch["image"] for batch in epoch]), images.take(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_changing_a_batch_in_place_does_not_reach_the_next_epoch(tmp_path: Path, workers: int) -> None:
    # VPT's loader normalised its stored arrays in place: every epoch was normalised once more.
    images = images_of(split_of(tmp_path, 8))
    sampler = EpochSampler(8, 4)
    loader = make_loader(Batches(images, (8, 8)), sampler, workers)
    first = [batch["image"].clone() for batch in loader]
    for batch in loader:
        batch["image"].zero_()
    assert all(torch.equal(one, batch["image"]) for one, batch in zip(first, loader, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_later_epochs_read_memory(tmp_path: Path, workers: int) -> None:
    images = images_of(split_of(tmp_path, 8))
    for file in images.split.files:
        file.unlink()
    assert len(epochs(images, workers)[1]) == 2


def test_a_change_depends_on_seed_epoch_and_image_only(tmp_path: Path) -> None:
    images = images_of(split_of(tmp_path, 12))
    batches = Batches(images, (7, 7), 3, "crop_flip")
    alone = torch.cat([batches[1, [i]]["image"] for i in range(12)])
    assert torch.equal(batches[1, list(range(12))]["image"], alone)
    assert not torch.equal(batches[2, list(range(12))]["image"], alone)
    assert not torch.equal(Batches(images, (7, 7), 4, "crop_flip")[1, list(range(12))]["image"], alone)


def test_flip_mirrors_about_half_of_the_images(tmp_path: Path) -> None:
    images = images_of(split_of(tmp_path, 40))
    everything = torch.arange(40)
    changed, plain = Batches(images, (8, 8), 0, "flip")[0, everything.tolist()]["image"], images.take(everything)
    same = (changed == plain).flatten(1).all(1)
    mirrored = (changed == plain.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 8 < mirrored.sum() < 32


def test_a_crop_is_a_window_of_the_image(tmp_path: Path) -> None:
    images = images_of(split_of(tmp_path, 1), size=9)
    whole = images.take(torch.tensor([0]))[0]
    windows = [whole[:, y : y + 7, x : x + 7] for y in range(3) for x in range(3)]
    seen = set()
    for epoch in range(60):
        crop = Batches(images, (7, 7), 0, "crop_flip")[epoch, [0]]["image"][0]
        seen |= {
            i for i, window in enumerate(windows) if torch.equal(crop, window) or torch.equal(crop, window.flip(-1))
        }
    assert seen == set(range(9))


def test_the_order_is_that_of_seed_and_epoch() -> None:
    first = positions(EpochSampler(50, 8, seed=1, shuffle=True), 4)
    assert positions(EpochSampler(50, 8, seed=1, shuffle=True), 4) == first
    assert positions(EpochSampler(50, 7, seed=1, shuffle=True), 4) == first
    assert positions(EpochSampler(50, 8, seed=1, shuffle=True), 5) != first
    assert positions(EpochSampler(50, 8, seed=2, shuffle=True), 4) != first
    assert positions(EpochSampler(50, 8)) == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_at_any_batch_and_the_next_one_is_whole(tmp_path: Path, workers: int) -> None:
    images = images_of(split_of(tmp_path, 17))
    whole = epochs(images, 0, "flip")
    sampler = EpochSampler(17, 5, seed=3, shuffle=True, start=(0, 2))
    loader = make_loader(Batches(images, (8, 8), 3, "flip"), sampler, workers)
    assert len(loader) == 4
    for epoch, expected in enumerate([whole[0][2:], whole[1]]):
        sampler.set_epoch(epoch)
        for ours, theirs in zip(loader, expected, strict=True):
            assert torch.equal(ours["image"], theirs["image"])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_and_have_equally_many_batches(world: int) -> None:
    samplers = [EpochSampler(20, 4, seed=1, shuffle=True, rank=rank, world=world) for rank in range(world)]
    shares = [positions(sampler) for sampler in samplers]
    assert len({len(sampler) for sampler in samplers}) == len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(range(20))
    assert sum(len(share) for share in shares) - 20 < world


def test_more_processes_than_images_still_have_a_batch_each() -> None:
    assert [positions(EpochSampler(2, 4, rank=rank, world=5)) for rank in range(5)] == [[0], [1], [0], [1], [0]]


def test_drop_last_leaves_out_the_smaller_batch() -> None:
    sampler = EpochSampler(10, 4, drop_last=True)
    assert [len(batch) for _, batch in sampler] == [4, 4]
    assert len(sampler) == 2


def test_drop_last_with_too_few_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drop_last leaves no batch: 10 images a process do not fill a batch of 64"):
        EpochSampler(10, 64, drop_last=True)


def test_a_split_too_large_for_memory_is_decoded_batch_by_batch(tmp_path: Path) -> None:
    split = split_of(tmp_path, 9)
    kept, streamed = images_of(split), images_of(split, limit=9 * 3 * 8 * 8 - 1)
    assert (kept.cached, streamed.cached) == (True, False)
    assert (kept.nbytes, streamed.nbytes) == (9 * 3 * 8 * 8, 0)
    for ours, theirs in zip(epochs(kept, 0, "flip")[1], epochs(streamed, 2, "flip")[1], strict=True):
        assert torch.equal(ours["image"], theirs["image"])


def test_the_memory_limit_is_at_most_four_gibibytes() -> None:
    assert 2**26 < memory_limit() <= 4 * 2**30


@pytest.mark.parametrize(("content", "limit"), [("4096\n", 1024), ("max\n", None), (f"{2**63 - 4096}\n", None)])
def test_the_memory_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, limit: int | None
) -> None:
    monkeypatch.setattr(cache, "_CONTAINER", (tmp_path / "absent",))
    bare = memory_limit()
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(cache, "_CONTAINER", (tmp_path / "absent", tmp_path / "memory.max"))
    assert memory_limit() == (limit or bare)


@pytest.mark.parametrize("limit", [NO_LIMIT, 0])
def test_unreadable_files_are_skipped_and_counted(tmp_path: Path, limit: int) -> None:
    split = split_of(tmp_path, 6)
    split.files[1].write_bytes(b"")
    split.files[4].unlink()
    images = images_of(split, skip=True, limit=limit)
    assert len(images) == 4
    assert [message.split()[0] for message in images.skipped] == [str(split.files[1]), str(split.files[4])]
    assert images.labels.tolist() == [0, 2, 0, 2]
    expected = images_of(Split([split.files[i] for i in (0, 2, 3, 5)], [0] * 4)).take(torch.arange(4))
    assert np.array_equal(images.take(torch.arange(4)), expected)


@pytest.mark.parametrize("limit", [NO_LIMIT, 0])
def test_an_unreadable_file_stops_unless_told_to_skip(tmp_path: Path, limit: int) -> None:
    split = split_of(tmp_path, 3)
    split.files[2].write_bytes(b"garbage")
    with pytest.raises(UnreadableImage, match=r"2\.png could not be read"):
        images_of(split, limit=limit)


def test_skipping_everything_is_refused(tmp_path: Path) -> None:
    split = split_of(tmp_path, 3)
    for file in split.files:
        file.write_bytes(b"garbage")
    with pytest.raises(UnreadableImage, match=r"None of the 3 images of this split can be read.*0\.png"):
        images_of(split, skip=True)
