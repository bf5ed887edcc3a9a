"""Batches that are accumulated are one large batch: every trained word counts the same, and a penalty once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mllm import run
from mllm.data_schema import FilesConfig
from mllm.weighting import Weighting
from tests.mllm.data.files import write_talks
from tests.mllm.runs import tiny_config, watched, write_language
from tests.mllm.vocabularies import by_bytes
from vpeft.tasks import learning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighting")
    write_talks(folder / "data", 14)
    write_language(folder / "language", by_bytes())
    return folder


def gradients(folder, output, batch, accumulate, data, steps=2, **change):
    """Of every optimiser step, with their names."""
    found = []

    def look(task, *args, **named):
        named_parameters = [entry for part in task.model.components().values() for entry in part]
        found.append({name: p.grad.clone() for name, p in named_parameters})

    files = FilesConfig(train=["talks.json"])
    data = {"task": "talks", "root": folder / "data", "files": files, "max_length": 120, "batch_size": batch} | data
    train = {"steps": steps, "accumulate": accumulate}
    config = tiny_config(
        f"hf:{folder / 'language'}", output, data, language_method={"name": "lora", "r": 2}, train=train, **change
    )
    with watched("configure_gradient_clipping", look):
        run.train(config)
    return found


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "padded": (8, {}),
    "packed": (2, {"pack": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_accumulated_batches_have_the_gradient_of_one(folder, tmp_path, case):
    size, data = CASES[case]
    # The second step of the packed rows is what is left of an epoch.
    whole = gradients(folder, tmp_path / "whole", size, 1, data)
    parts = gradients(folder, tmp_path / "parts", size // 2, 2, data)
    assert len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_words_of_the_batches_do_differ(folder, tmp_path):
    counts = []
    with watched("training_step", lambda task, batch, index: counts.append(int((batch["labels"] >= 0).sum()))):
        gradients(folder, tmp_path, 4, 2, {})
    assert max(counts) > 1.2 * min(counts), counts


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_penalty_counts_once_whatever_is_accumulated(folder, tmp_path, monkeypatch, accumulate):
    change = {"steps": 1, "method": {"name": "lora", "rank": 2}}
    (plain,) = gradients(folder, tmp_path / "plain", 4, accumulate, {}, **change)
    monkeypatch.setattr(learning, "penalty", lambda vision: 3 * sum(p.sum() for _, p in vision.trainable()))
    (penalised,) = gradients(folder, tmp_path / "penalised", 4, accumulate, {}, **change)
    for name, gradient in plain.items():
        added = 3.0 if name.startswith("vision.") else 0.0
        torch.testing.assert_close(penalised[name], gradient + added, rtol=1e-5, atol=1e-5)
    assert any(name.startswith("vision.") for name in plain)


def test_batches_without_a_trained_word_change_nothing():
    weighting, parameter = Weighting(), nn.Parameter(torch.ones(3))
    trainer: Any = SimpleNamespace(world_size=1)
    for words, mean in ((0, 0.0), (6, 2.0), (3, 5.0)):
        factor, _ = weighting.add(torch.tensor(words), trainer)
        (factor / 3 * mean * parameter.sum()).backward()
    weighting.finish([parameter], 3)
    torch.testing.assert_close(parameter.grad, torch.full((3,), (6 * 2.0 + 3 * 5.0) / 9))
    weighting.add(torch.tensor(0), trainer)
    weighting.finish([parameter], 1)
