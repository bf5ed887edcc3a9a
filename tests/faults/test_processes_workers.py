"""A process that loads data is killed: one sentence, and the run goes on from its checkpoint."""

import os
import re
import signal

import pytest
import torch

from tests.adapters import save
from tests.runs import tiny_config, write_images
from tests.suite.conftest import FILE
from vpeft import failures
from vpeft.config import to_yaml
from vpeft.data.loader import Batches
from vpeft.results import read_rows
from vpeft.suite import plan, settings, work
from vpeft.suite.folder import SuiteFolder

SAID = (
    r"The process that loads data \(pid \d+\) (was ended by a signal \(Killed\)|ended unexpectedly), most often "
    r"because memory ran out: lower data\.workers, or free some memory\. A run goes on from its last checkpoint with "
    r"--train\.resume true\."
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def deadly(monkeypatch):
    """The worker that reads the batch dies at it, as of the kernel's hand."""
    read, home = Batches.__getitem__, os.getpid()

    def die(self, fetch):
        if fetch[0] == deadly.epoch and os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, fetch)

    class deadly:
        epoch = 0

    monkeypatch.setattr(Batches, "__getitem__", die)
    return deadly


def test_a_run_ends_with_a_sentence_and_goes_on(tool, images, tmp_path, deadly):
    deadly.epoch = 1
    config = tiny_config(images, tmp_path / "out")
    config.data.workers = 1
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    ended = tool("train", tmp_path / "run.yaml")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch("error: " + SAID, line)
    assert not (tmp_path / "out" / "results.jsonl").exists()
    state = torch.load(tmp_path / "out" / "run" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    deadly.epoch = -1
    assert tool("train", tmp_path / "run.yaml", "--train.resume", "true").code == 0
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 1


def test_a_test_of_an_adapter_ends_with_a_sentence(tool, images, tmp_path, deadly):
    save(tmp_path / "adapter.safetensors")
    words = ("--data.root", images, "--data.format", "folder", "--data.workers", "1")
    ended = tool("test", tmp_path / "adapter.safetensors", *words)
    assert ended.code == 1
    assert re.search("^error: " + SAID, ended.err, re.MULTILINE)
    assert "Traceback" not in ended.err


def test_a_suite_marks_that_member_and_goes_on(images, tmp_path, deadly, monkeypatch):
    deadly.epoch = 2
    files = []
    for name, epochs in {"long": 3, "short": 1}.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(FILE.format(method="lora, rank: 2", lr=0.02, epochs=epochs).replace("0.5", "0"))
        files.append(str(file))
    given = [*files, "--root", str(images), "--tasks", "colors", "--output", str(tmp_path / "suite")]
    real = work.with_values

    def loading(member, source, values):
        # Who reads the images is no setting of a member, so that by default there are no such processes.
        return real(member, source, {**values, "data.workers": 1})

    monkeypatch.setattr(work, "with_values", loading)
    members = plan.build(settings.parse(given))  # type: ignore[arg-type]
    folder = SuiteFolder(tmp_path / "suite")
    ended = [work.work(folder, item, lambda *_: None) for item in folder.add(members, plan.items(members, 1))]
    assert ended == [["failed"], ["done"]]
    assert re.fullmatch("RuntimeError: " + SAID, folder.note(members[0].id)["error"])


def test_too_little_shared_memory_is_another_sentence():
    error = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit."
    )
    assert failures.said(error) == (
        "The process that loads data (pid 7) ran out of shared memory: give the container a larger /dev/shm (docker: "
        "--shm-size), or lower data.workers. A run goes on from its last checkpoint with --train.resume true."
    )
