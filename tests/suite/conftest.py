"""Suites whose members take a second: a random tiny ViT on coloured noise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runs import write_images
from vpeft.suite import command, settings

FILE = """
method: {{name: {method}}}
backbone: test_vit.r160_in1k
pretrained: none
image_size: 32
data: {{format: folder, batch_size: 8, eval_batch_size: 7}}
optim: {{lr: {lr}, warmup_epochs: 0.5}}
train: {{epochs: {epochs}, accelerator: cpu}}
"""


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def write(tmp_path):
    """Write a config file and give its name."""

    def write(name: str, method: str = "lora, rank: 2", lr: float = 0.02, epochs: int = 3, more: str = "") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(FILE.format(method=method, lr=lr, epochs=epochs) + more)
        return str(path)

    return write


@pytest.fixture(scope="session", autouse=True)
def workers_find_this_package():
    """Processes of a suite import what the tests import, wherever they are started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(command.__file__).parents[2]), before]))
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


@pytest.fixture
def ask(images, tmp_path):
    """A request from the words of a command line, on coloured noise."""

    def ask(*words: str, root: Path = images, tasks: str = "colors") -> settings.Request:
        given = ["--root", str(root), "--tasks", tasks, "--output", str(tmp_path / "suite"), *words]
        request = settings.parse(given)
        assert isinstance(request, settings.Request)
        return request

    return ask
