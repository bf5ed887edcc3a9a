"""Tools are run in this process, as `python tools/NAME.py ...` would run them."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adapters import save
from tests.runs import write_images

TOOLS = Path(__file__).parents[2] / "tools"


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def tool(monkeypatch, capsys) -> Callable[..., Ended]:
    """Runs tools/NAME.py with words and says how it ended."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(name: str, *words: object) -> Ended:
        monkeypatch.setattr("sys.argv", [f"tools/{name}.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        out, err = capsys.readouterr()
        return Ended(ended.value.code or 0, out, err)

    return run


@pytest.fixture
def adapter(tmp_path) -> Path:
    path = tmp_path / "adapter.safetensors"
    save(path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """images/blue/0.png ... images/red/4.png"""
    return write_images(tmp_path / "images", 5)
