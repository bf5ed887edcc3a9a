"""Runs that share a device and cores, worked out by hand."""

import pytest

from vpeft.data.tables import VTAB
from vpeft.scaling.simulation import SIZES, Phase, decode_seconds, member, simulate


def test_one_at_a_time_is_the_sum() -> None:
    members = [[Phase("cores", 8.0), Phase("device", 3.0)]] * 2
    assert simulate(members, jobs=1, cores=4) == pytest.approx((10.0, 0.6))


def test_one_decodes_while_another_trains() -> None:
    # Both decode in 0..4 (two cores each), then share the device until 10.
    members = [[Phase("cores", 8.0), Phase("device", 3.0)]] * 2
    assert simulate(members, jobs=2, cores=4) == pytest.approx((10.0, 0.6))
    # Of different lengths: decoded at 1 and, with all cores from then on, at 2.5; the device is busy from 1 to 9.
    members = [[Phase("cores", 2.0), Phase("device", 4.0)], [Phase("cores", 8.0), Phase("device", 4.0)]]
    assert simulate(members, jobs=2, cores=4) == pytest.approx((9.0, 8 / 9))
    assert simulate(members, jobs=1, cores=4) == pytest.approx((10.5, 8 / 10.5))


def test_no_more_run_than_may() -> None:
    members = [[Phase("device", 1.0)]] * 5
    assert simulate(members, jobs=2, cores=1) == pytest.approx((5.0, 1.0))


def test_phases_without_work_are_passed() -> None:
    assert simulate([[Phase("cores", 0.0), Phase("device", 1.0)], []], jobs=1, cores=1) == pytest.approx((1.0, 1.0))


def test_a_run_counts_its_steps_its_images_and_what_does_not_fit() -> None:
    work = {"step": 0.01, "image": 0.001, "host": 5.0}
    load, train, again, test = member("cifar100", work, decode=0.002)
    assert load == Phase("cores", 5.0 + 11_000 * 0.002)
    assert train.seconds == pytest.approx(100 * 15 * 0.01)
    assert again.seconds == 0  # 11,000 images of 224 px fit into memory
    assert test.seconds == pytest.approx(10.0)
    assert member("dsprites_loc", work, decode=0.002)[2].seconds == pytest.approx(73_728 * 0.002)
    assert member("cifar100", work, decode=0.002, pack=4)[1].seconds == pytest.approx(train.seconds / 4)


def test_every_task_has_a_size() -> None:
    assert list(SIZES) == list(VTAB)
    assert decode_seconds((32, 32), repeats=1) > 0
