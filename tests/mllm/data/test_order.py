from __future__ import annotations

import numpy as np
import pytest

from mllm.data.order import GroupedSampler, first_fit

LENGTHS = np.random.default_rng(0).integers(3, 60, 500).tolist()


def test_every_sample_is_in_one_row_and_every_row_fits() -> None:
    rows = first_fit(LENGTHS, 64, seed=0, window=100)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(LENGTHS[i] for i in row) for row in rows) <= 64


def test_a_sample_goes_into_the_first_row_with_room() -> None:
    rows = first_fit(LENGTHS, 64, seed=0, window=500)
    filled: list[int] = []
    place = {i: row for row, members in enumerate(rows) for i in members}
    order = np.random.default_rng([0, 3]).permutation(500).tolist()
    for i in order:
        expected = next((row for row, used in enumerate(filled) if used + LENGTHS[i] <= 64), len(filled))
        assert place[i] == expected
        if expected == len(filled):
            filled.append(0)
        filled[expected] += LENGTHS[i]
    assert sum(filled) / (64 * len(filled)) > 0.9


def test_rows_follow_from_the_seed_and_keep_to_their_window() -> None:
    assert first_fit(LENGTHS, 64, 1) == first_fit(LENGTHS, 64, 1) != first_fit(LENGTHS, 64, 2)
    order = np.random.default_rng([1, 3]).permutation(500).tolist()
    place = {i: order.index(i) // 100 for i in range(500)}
    assert all(len({place[i] for i in row}) == 1 for row in first_fit(LENGTHS, 64, 1, window=100))


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="A sample of 65 tokens does not fit into a row of 64; make rows longer"):
        first_fit([3, 65], 64, 0)
    assert first_fit([], 64, 0) == []


WITH = (np.random.default_rng(1).random(500) < 0.7).tolist()


def batches(
    rank: int = 0, world: int = 1, epoch: int = 0, seed: int = 0, start: tuple[int, int] = (0, 0)
) -> list[list[int]]:
    sampler = GroupedSampler(LENGTHS, WITH, 8, seed, rank, world, start)
    sampler.set_epoch(epoch)
    return [positions for _, positions in sampler]


def test_grouped_batches_hold_every_sample_once_and_one_kind_each() -> None:
    found = batches()
    assert sorted(i for batch in found for i in batch) == list(range(500))
    assert len(found) == len(GroupedSampler(LENGTHS, WITH, 8)) == 63
    mixed = [batch for batch in found if len({WITH[i] for i in batch}) > 1]
    assert len(mixed) <= 2  # what is left of both kinds
    assert {WITH[batch[0]] for batch in found[:20]} == {True, False}  # and kinds take turns


def test_grouped_batches_have_samples_of_similar_length() -> None:
    def spread(groups: list[list[int]]) -> float:
        return float(np.mean([max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in groups]))

    shuffled = np.random.default_rng(0).permutation(500).tolist()
    assert spread(batches()) < 0.2 * spread([shuffled[i : i + 8] for i in range(0, 500, 8)])
    lengths = [max(LENGTHS[i] for i in batch) for batch in batches()[:-1]]
    assert lengths != sorted(lengths, reverse=True)  # their order is shuffled


def test_grouped_batches_follow_from_seed_and_epoch() -> None:
    assert batches(epoch=2) == batches(epoch=2)
    assert batches(epoch=2) != batches(epoch=3)
    assert batches(seed=1) != batches(seed=2)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_samples_evenly(world: int) -> None:
    parts = [batches(rank, world) for rank in range(world)]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    assert {i for part in parts for batch in part for i in batch} == set(range(500))
    for together in zip(*parts, strict=True):
        lengths = [sorted(LENGTHS[i] for i in batch) for batch in together]
        assert (
            len({WITH[i] for batch in together for i in batch}) == 1 or together in list(zip(*parts, strict=True))[-2:]
        )
        assert np.ptp(lengths, axis=0).max() < 20


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    assert batches(epoch=1, start=(1, 5)) == batches(epoch=1)[5:]
    assert batches(epoch=2, start=(1, 5)) == batches(epoch=2)


@pytest.mark.parametrize("images", [True, False])
def test_one_kind_alone_and_fewer_samples_than_a_batch_are_fine(images: bool) -> None:
    assert [len(positions) for _, positions in GroupedSampler([5, 6, 7], [images] * 3, 8, world=2)] == [2]
    both = [i for rank in (0, 1) for _, p in GroupedSampler([5, 6, 7], [images] * 3, 8, 0, rank, 2) for i in p]
    assert (set(both), len(both)) == ({0, 1, 2}, 4)
