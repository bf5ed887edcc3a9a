"""Commands that are killed and started again end as if nothing had been; `tests.faults.campaign` says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import SHARES, campaign
from tests.faults.prepared import PACKAGE, VTAB1K
from tests.faults.strikes import Strike
from tests.faults.trained import MADE, TRAINING
from tests.faults.victims import Kind

CHECKPOINT = Strike("os.rename", "last.ckpt", count=2, torn=True)
FEW = [
    (TRAINING, [[MADE, CHECKPOINT, Strike("open", "results.jsonl", torn=True)]]),
    (VTAB1K, [[Strike("os.rename", "*.png", count=30, torn=True), Strike("os.rename", "val200.txt", alone=True)]]),
    (PACKAGE, [[Strike("open", "manifest.json"), Strike("os.rename", "textile")]]),
]


@pytest.mark.parametrize(("kind", "plans"), FEW, ids=[kind.name for kind, _ in FEW])
def test_killed_a_few_times(tmp_path: Path, kind: Kind, plans: list[list[Strike]]) -> None:
    told = campaign(tmp_path, kind, sum(map(len, plans)), plans=plans)
    assert not told.faults()
    assert len(told.kills) == sum(map(len, plans))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), SHARES, ids=[kind.name for kind, _ in SHARES])
def test_killed_fifty_times_in_all(tmp_path: Path, kind: Kind, kills: int) -> None:
    told = campaign(tmp_path, kind, kills)
    assert not told.faults()
    assert len(told.kills) == kills
