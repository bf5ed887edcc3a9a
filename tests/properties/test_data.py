"""Splits, samplers, label maps and masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mllm.data.order import GroupedSampler, first_fit
from vpeft.data.listing import Split, hold_out
from vpeft.data.loader import EpochSampler
from vpeft.data.masks import ClassTable, read_mask
from vpeft.data.ranking import shares, stratified
from vpeft.heads.label_mapping import frequency, greedy

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)


@given(LABELS, st.lists(st.floats(0, 1), min_size=1, max_size=3), st.text(max_size=5))
def test_splits_are_disjoint_seeded_and_give_every_class_its_share(labels, parts, key) -> None:
    sizes, left = [], len(labels)
    for part in parts:
        sizes.append(int(part * left))
        left -= sizes[-1]
    splits = stratified(labels, sizes, key)
    assert [len(split) for split in splits] == sizes
    chosen = [i for split in splits for i in split]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(len(labels)))
    assert splits == stratified(labels, sizes, key)
    counts = Counter(labels)
    for label, count in Counter(labels[i] for i in splits[0]).items():
        assert abs(count - sizes[0] * counts[label] / len(labels)) < 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 60))
def test_shares_are_whole_add_up_and_are_a_fraction_from_their_part(counts: list[int], size: int) -> None:
    assume(sum(counts) >= max(size, 1))
    given_out = shares(counts, size)
    assert sum(given_out) == size
    for share, count in zip(given_out, counts, strict=True):
        assert 0 <= share <= count
        assert abs(share - size * count / sum(counts)) < 1


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.floats(0.05, 0.9), st.randoms(use_true_random=False))
def test_the_same_images_are_held_out_in_whatever_order_they_are_found(sizes, share, chance) -> None:
    names = [(f"{label}/{i}.png", label) for label, size in enumerate(sizes) for i in range(size)]

    def cut(order):
        split = Split([Path(name) for name, _ in order], [label for _, label in order])
        return hold_out(split, [name for name, _ in order], share, "key")

    kept, held = cut(names)
    mixed = list(names)
    chance.shuffle(mixed)
    again_kept, again_held = cut(mixed)
    assert set(kept.files) == set(again_kept.files)
    assert set(held.files) == set(again_held.files)
    assert sorted([*kept.files, *held.files]) == sorted(Path(name) for name, _ in names)
    assert not set(kept.files) & set(held.files)
    assert all(label == int(file.parent.name) for file, label in zip(kept.files, kept.labels, strict=True))
    for label, size in enumerate(sizes):
        assert held.labels.count(label) == max(1, round(share * size))


@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**31), st.booleans(), st.integers(1, 5), st.integers(0, 3)
)
def test_every_index_is_in_an_epoch_and_processes_share_it(length, batch, seed, shuffle, world, epoch) -> None:
    def batches(rank):
        sampler = EpochSampler(length, batch, seed, shuffle, rank=rank, world=world)
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler)
        assert all(at == epoch for at, _ in found)
        return [positions for _, positions in found]

    parts = [batches(rank) for rank in range(world)]
    seen = Counter(i for part in parts for positions in part for i in positions)
    assert set(seen) == set(range(length))
    share = -(-length // world)
    assert all(sum(map(len, part)) == share for part in parts)  # no process waits for another
    if world <= length:
        assert sum(count - 1 for count in seen.values()) == share * world - length
    assert parts == [batches(rank) for rank in range(world)]


@given(st.integers(1, 60), st.integers(1, 9), st.booleans(), st.integers(1, 3), st.data())
def test_a_resumed_epoch_is_the_rest_of_it(length, batch, shuffle, world, data) -> None:
    whole = EpochSampler(length, batch, 3, shuffle, rank=world - 1, world=world)
    whole.set_epoch(2)
    batches = list(whole)
    done = data.draw(st.integers(0, len(batches)))
    rest = EpochSampler(length, batch, 3, shuffle, rank=world - 1, world=world, start=(2, done))
    assert list(rest) == batches[done:]
    rest.set_epoch(3)
    whole.set_epoch(3)
    assert list(rest) == list(whole)


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=90), st.integers(1, 5), st.data())
def test_grouped_batches_hold_every_sample_once_but_for_what_fills_the_last(samples, batch, data) -> None:
    lengths, images = zip(*samples, strict=True)
    world = data.draw(st.integers(1, 3))
    parts = [list(GroupedSampler(lengths, images, batch, 1, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    seen = Counter(i for part in parts for _, positions in part for i in positions)
    assert set(seen) == set(range(len(samples)))
    assert sum(seen.values()) - len(samples) < world
    done = data.draw(st.integers(0, len(parts[0])))
    assert list(GroupedSampler(lengths, images, batch, 1, 0, world, start=(0, done))) == parts[0][done:]


@given(st.lists(st.integers(1, 30), max_size=80), st.integers(0, 5), st.integers(1, 40))
def test_a_packed_row_has_room_for_its_samples_and_each_is_in_one(lengths, seed, window) -> None:
    rows = first_fit(lengths, 30, seed, window)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= 30 for row in rows)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**31))
def test_a_label_map_gives_every_target_its_own_sources(classes, sources, more, seed) -> None:
    there = classes * sources + more
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, there, generator=draw)
    labels = torch.randint(classes, (40,), generator=draw)
    counts = frequency(logits, labels, classes)
    assert (counts.shape, int(counts.sum())) == ((there, classes), 40)
    mapping = greedy(counts, sources)
    assert mapping.shape == (classes, sources)
    assert len(set(mapping.flatten().tolist())) == classes * sources
    assert mapping.min() >= 0
    assert mapping.max() < there
    order = torch.randperm(40, generator=draw)
    assert torch.equal(greedy(frequency(logits[order], labels[order], classes), sources), mapping)
    if sources == 1:
        top = divmod(int(counts.argmax()), classes)
        assert int(mapping[top[1], 0]) == top[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@given(classes=st.sampled_from([2, 40, 254, 255, 300]), seed=st.integers(0, 999), reduce=st.booleans())
def test_a_mask_comes_back_from_its_file_with_what_is_ignored(folder, classes, seed, reduce) -> None:
    table = ClassTable.of([f"c{i}" for i in range(classes)])
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, classes, (5, 7))
    ids[draw.random((5, 7)) < 0.3] = table.ignore
    stored = np.where(ids == table.ignore, 0 if reduce else table.ignore, ids + reduce)
    wide = stored.max() > 255 or classes >= 255
    file = folder / "m.png"
    Image.fromarray(stored.astype(np.uint16 if wide else np.uint8)).save(file)
    assert np.array_equal(read_mask(file, table, reduce), ids)
