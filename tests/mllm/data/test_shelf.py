from __future__ import annotations

from pathlib import Path

import pytest

from mllm.data.shelf import Shelf
from mllm.sample import Held, Sample, Turn

SAMPLES = [Sample(str(i), (Path("a.png"), Held("b", b"x" * i)), (Turn("user", "é" * i),), "f") for i in range(5)]


def test_samples_come_back_as_they_were() -> None:
    shelf = Shelf(iter(SAMPLES))
    assert (len(shelf), list(shelf)) == (5, SAMPLES)
    assert [shelf[4], shelf[0]] == [SAMPLES[4], SAMPLES[0]]
    assert list(shelf.take([3, 1])) == [SAMPLES[3], SAMPLES[1]]
    assert list(Shelf()) == []
    with pytest.raises(IndexError):
        shelf[5]
