"""Samples whose images are lost during an evaluation are left out of it, and counted."""

from __future__ import annotations

import pytest

from mllm import evaluation
from mllm.data.shelf import Shelf
from mllm.evaluation import answer_all
from tests.mllm.evaluations import data, see, settings, ten
from tests.mllm.models import vlm


@pytest.fixture
def root(tmp_path):
    return ten(tmp_path)


@pytest.fixture
def seeing(monkeypatch):
    monkeypatch.setattr(evaluation, "answers", see)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_whose_image_is_lost_meanwhile_is_not_scored_and_is_counted(root, seeing, monkeypatch, workers):
    monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    model = vlm()
    module = data(root, model, on_missing="skip")
    module.config.workers = workers
    module.setup()
    for i in (3, 8):
        (root / f"{i}.png").unlink()
    found = answer_all(model, module, "test", settings(controls=True))
    values = found.values()
    assert [row.id for row in found.rows] == [f"number {i}" for i in range(10) if i not in (3, 8)]
    assert (values["samples"], values["lost"], values["score"]) == (8, 2, 1)
    counts = found.card["samples"]
    assert (counts["count"], counts["lost"], counts["of"], counts["chosen"]) == (8, 2, 10, "all")
    assert [len(ids) for ids, _ in found.controls.values()] == [8, 8]
    assert values["shuffled"] == 0


def test_a_control_without_its_image_is_left_out(root, seeing, monkeypatch):
    monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    model = vlm()
    module = data(root, model, on_missing="skip")
    plain = evaluation.shuffled

    def late(samples: Shelf, key: str) -> Shelf:
        (root / "3.png").unlink()  # once the questions have been asked
        return plain(samples, key)

    monkeypatch.setattr(evaluation, "shuffled", late)
    with pytest.warns(UserWarning, match=r"3\.png was lost"):
        found = answer_all(model, module, "test", settings(controls=True))
    assert [len(ids) for ids, _ in found.controls.values()] == [9, 10]
    assert (len(found.rows), found.score, found.lost) == (10, 1, 0)


def test_nothing_left_to_score_is_refused(root, seeing, monkeypatch):
    monkeypatch.setattr("mllm.data.module.memory_limit", lambda: 0)
    model = vlm()
    module = data(root, model, on_missing="skip")
    module.setup()
    for i in range(10):
        (root / f"{i}.png").unlink()
    with (
        pytest.warns(UserWarning, match="was lost"),
        pytest.raises(ValueError, match="All images of the 10 samples that are evaluated were lost during the run"),
    ):
        answer_all(model, module, "test", settings())
