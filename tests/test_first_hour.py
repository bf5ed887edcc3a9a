"""The tutorial: every block of it, in order, in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/first-hour.md"
COPIED = ("configs", "data_prep", "docs", "mllm", "tests", "tools", "vpeft", "pyproject.toml", "README.md")
BLOCK = re.compile(r"(?:^<!-- (?P<note>.+?) -->\n\n)?^```sh\n(?P<code>.+?)^```$", flags=re.M | re.S)
ADD, NOT_RUN = "the tests add: ", "not run by the tests: "


def script(page):
    """The blocks as one script: what one sets is there in the next, and the first failure ends it."""
    parts = ["set -euo pipefail\n"]
    for block in BLOCK.finditer(page):
        note, code = block["note"] or "", block["code"]
        assert not note or note.startswith((ADD, NOT_RUN)), f"a comment before a block says something else: {note}"
        if note.startswith(ADD):
            code, changed = re.subn(r"^(python tools/train\.py .+)$", rf"\1 {note.removeprefix(ADD)}", code, flags=re.M)
            assert changed, f"no training to add '{note}' to"
        if not note.startswith(NOT_RUN):
            parts.append(code)
    return "".join(parts)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which the page was run."""
    folder = tmp_path_factory.mktemp("first_hour")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # before the package that is installed
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        ["bash"],
        input=script(PAGE.read_text(encoding="utf-8")),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    return folder


def test_every_training_of_the_page_ends_with_an_adapter_and_a_row(copy):
    rows = [json.loads(line) for line in (copy / "runs/results.jsonl").read_text().splitlines()]
    assert [row["method"][0]["name"] for row in rows] == ["vpt", "lora", "bitfit", "red"]
    assert len(list(copy.glob("runs/*/adapter.safetensors"))) == 4


def test_the_page_predicts_and_merges(copy):
    assert len((copy / "top.csv").read_text().splitlines()) == 1 + 2 * 61
    with safe_open(copy / "merged.safetensors", "pt") as file:
        assert file.get_tensor("head.weight").shape == (3, 384)


def test_the_page_changes_nothing_of_the_repository_but_by_its_own_commands(copy):
    assert not (ROOT / "vpeft/methods/red.py").exists()


def test_blocks_that_are_not_run_are_left_out_and_shorter_settings_are_added():
    page = "<!-- not run by the tests: a server -->\n\n```sh\nserve\n```\n\n<!-- the tests add: --seed 1 -->\n\n"
    page += "```sh\npython tools/train.py a.yaml\nls\n```\n"
    assert script(page) == "set -euo pipefail\npython tools/train.py a.yaml --seed 1\nls\n"
