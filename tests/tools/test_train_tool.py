import os
import subprocess
import sys

import pytest

from tests.tools.conftest import TOOLS
from vpeft import run


@pytest.fixture
def trained(monkeypatch):
    """What was asked of `run.train`, which does nothing here."""
    asked = []
    monkeypatch.setattr(run, "train", asked.append)
    return asked


def test_the_resolved_config_is_trained(tool, trained):
    ended = tool("train", TOOLS.parent / "configs/debug/tiny.yaml", "--method.prompts", "3", "--seed", "7")
    assert ended.code == 0
    assert (trained[0].method["prompts"], trained[0].seed, trained[0].backbone) == (3, 7, "test_vit")


def test_a_mistake_trains_nothing(tool, trained):
    ended = tool("train", TOOLS.parent / "configs/debug/tiny.yaml", "--data.tsk", "x")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: command line: there is no 'data.tsk'; did you mean 'data.task'?\n"
    assert not trained


def test_print_config_prints_and_trains_nothing(tool, trained):
    ended = tool("train", TOOLS.parent / "configs/debug/tiny.yaml", "--print_config")
    assert ended.code == 0
    assert "prompts: 2" in ended.out
    assert not trained


def test_help_lists_every_key_and_no_form_that_is_not_read(tool):
    ended = tool("train", "--help")
    assert ended.code == 0
    assert "usage: tools/train.py CONFIG [--key value ...] [--print_config]" in ended.out
    for line in ("--method METHOD", "--optim.lr LR", "--data.on_error {stop,skip}"):
        assert line in ended.out
    assert "--method+" not in ended.out
    assert "--data CONFIG" not in ended.out


@pytest.mark.parametrize("name", ["train", "test", "predict", "merge", "search"])
def test_help_and_wrong_words_end_as_they_should_in_a_shell(name):
    def shell(*words):
        command = [sys.executable, str(TOOLS / f"{name}.py"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    environment = os.environ | {"PYTHONPATH": str(TOOLS.parent)}
    helped, wrong = shell("--help"), shell()
    assert helped.returncode == 0
    assert helped.stdout.startswith(f"usage: tools/{name}.py")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: command line: ")
    assert len(wrong.stderr.splitlines()) == 1
