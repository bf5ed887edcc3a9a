"""Rounds, and ratios of what was measured in the same one."""

import pytest

from vpeft.bench.turns import Spread, ratios, turns


def test_the_order_is_turned_round_each_time_and_the_names_are_not():
    said = []
    runs = {name: lambda name=name: said.append(name) or len(said) for name in "abc"}
    found = list(turns(runs, 3))
    assert "".join(said) == "abccbaabc"
    assert found == [{"a": 1, "b": 2, "c": 3}, {"a": 6, "b": 5, "c": 4}, {"a": 7, "b": 8, "c": 9}]
    assert [list(one) for one in found] == [list("abc")] * 3


def test_ratios_are_of_pairs_and_not_of_medians():
    spread = ratios([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (spread.low, spread.median, spread.high) == (1.5, 2.0, 2.5)
    assert f"{spread:.1f}" == "2.0 (1.5 to 2.5)"
    assert f"{ratios([1.0, 2.0], [2.0, 4.0]):.2f}" == "0.50"
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_rounds_that_lack_a_partner_are_refused():
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="measure one round at least"):
        ratios([], [])
