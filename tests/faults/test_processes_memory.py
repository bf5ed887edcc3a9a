"""Memory runs out in one run: it is marked as failed with its reason, and whatever stands beside it goes on."""

import json
import os
import signal
import threading
import time

import pytest
import torch

from tests.runs import tiny_config, write_images
from tests.suite.conftest import FILE
from tests.test_search import NOAH_SPEC, SETTINGS
from vpeft import failures, packed, search
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.suite import command, plan, settings, work
from vpeft.suite.folder import SuiteFolder
from vpeft.tasks.classification import Classification

GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 5.12 MiB is "
    "free. Process 1 has 139.7 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "281474976710656 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def ask(images, tmp_path):
    """A request for a suite of these configs."""

    def ask(*words: str, **configs: dict) -> settings.Request:
        files = []
        for name, values in configs.items():
            file = tmp_path / f"{name}.yaml"
            file.write_text(FILE.format(**{"method": "lora, rank: 2", "lr": 0.02, "epochs": 2} | values))
            files.append(str(file))
        given = [*files, "--root", str(images), "--tasks", "colors", "--output", str(tmp_path / "suite"), *words]
        return settings.parse(given)  # type: ignore[return-value]

    return ask


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(GPU), r"^Out of memory of a GPU: 20\.00 MiB more could not be had\. "),
        (RuntimeError(CPU), r"^Out of memory of this machine or its container: 268,435,456 MiB more could not"),
        (MemoryError(), r"^Out of memory of this machine or its container\. Lower data\.batch_size .* or --pack\.$"),
        (MemoryError("There is too little memory left to decode a.png."), "^There is too little .* a.png.$"),
    ],
)  # fmt: skip
def test_it_is_a_sentence(error, said):
    import re

    assert failures.out_of_memory(error)
    assert re.search(said, failures.said(error) or "")


def test_other_errors_are_no_lack_of_memory():
    for error in (ValueError("out of memory"), RuntimeError("mat1 and mat2"), FileNotFoundError(2, "No such file")):
        assert not failures.out_of_memory(error)
        assert failures.said(error) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(GPU), MemoryError()])
def test_a_run_ends_with_the_sentence_and_keeps_its_checkpoint(tool, images, tmp_path, monkeypatch, error):
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(images, tmp_path / "out")))
    step = Classification.training_step

    def fail(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise error
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail)
        ended = tool("train", tmp_path / "run.yaml")
    assert ended.code == 1
    assert [line for line in ended.err.splitlines() if line.startswith("error: ")] == [f"error: {failures.said(error)}"]
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert tool("train", tmp_path / "run.yaml", "--train.resume", "true").code == 0
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 1


def test_in_a_suite_that_member_fails_and_the_others_go_on(ask, monkeypatch, capsys):
    request = ask(big={"lr": 0.5}, small={})
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    step = Classification.training_step

    def fail(self, batch, batch_idx):
        if self.optim.lr == 0.5:
            raise torch.OutOfMemoryError(GPU)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", fail)
    ended = [work.work(folder, item, lambda *_: None) for item in folder.add(members, plan.items(members, 1))]
    assert ended == [["failed"], ["done"]]
    assert folder.note(members[0].id)["error"].startswith("OutOfMemoryError: Out of memory of a GPU: 20.00 MiB more")
    assert [row["suite"]["method"] for row in folder.rows("final")] == ["small"]
    capsys.readouterr()
    command.status(request.output)
    shown = capsys.readouterr().out
    assert "1 done, 1 failed" in shown
    assert "failed: colors  big  seed 0: OutOfMemoryError: Out of memory of a GPU" in shown


def test_a_pack_that_is_too_large_is_trained_one_by_one(ask, monkeypatch, capsys):
    request = ask("--seeds", "2", "--pretrained", "auto", "--pack", "2", lora={})
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    (item,) = folder.add(members, plan.items(members, 2))
    alone = []
    monkeypatch.setattr(packed, "train_together", lambda *_: [torch.OutOfMemoryError(GPU), FloatingPointError("nan")])
    monkeypatch.setattr("vpeft.run.train", lambda config, beside: alone.append(config.seed) or {"test": None})
    assert work.work(folder, item, lambda *_: None) == ["done", "failed"]
    assert alone == [0], "what failed for a reason of its own is not tried again"
    said = capsys.readouterr().out
    assert "Out of memory of a GPU" in said
    assert "The members of the pack that did not end are trained one by one." in said


def test_in_a_search_what_is_measured_is_kept_and_it_goes_on(tmp_path, images, monkeypatch):
    config = tiny_config(images, tmp_path, NOAH_SPEC, epochs=1)
    measure, asked = search.Fitness.__call__, []

    def fail(self, architecture):
        asked.append(architecture)
        if len(asked) == 4:
            raise MemoryError
        return measure(self, architecture)

    monkeypatch.setattr(search.Fitness, "__call__", fail)
    with pytest.raises(MemoryError):
        search.search(config, SETTINGS)
    (state,) = tmp_path.glob("*/search.json")
    before = json.loads(state.read_text())["measured"]
    assert len(before) == 3
    config.train.resume = True
    file = search.search(config, SETTINGS)
    assert json.loads(state.read_text())["measured"][:3] == before
    assert file.is_file()
    assert len(set(asked[4:])) == len(asked[4:])


@pytest.mark.slow
def test_a_worker_of_a_suite_that_the_system_kills_fails_its_member_alone(ask, capsys):
    request = ask("--retries", "0", big={"lr": 0.5, "epochs": 400}, small={})
    key = next(one.id for one in plan.build(request) if one.method == "big")
    folder = SuiteFolder(request.output)

    def kill():
        while not (request.output / "members.jsonl").exists() or folder.note(key).get("status") != "running":
            time.sleep(0.1)
        os.kill(folder.note(key)["pid"], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    assert command.run(request) == 1
    assert [row["suite"]["method"] for row in folder.rows("final")] == ["small"]
    assert folder.note(key)["error"] == "its process died of SIGKILL (out of memory, or killed by hand)"
    capsys.readouterr()
    command.status(request.output)
    assert "failed: colors  big  seed 0: its process died of SIGKILL" in capsys.readouterr().out
