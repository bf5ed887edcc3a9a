"""The guard that comes before torchvision's import."""

import importlib.util
import subprocess
import sys

import pytest

import vpeft
from vpeft import _torchvision


class Recording:
    """A finder that finds nothing and notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)


@pytest.fixture
def declared(monkeypatch):
    """How often the operators were declared, on a fresh guard before torchvision's first import."""
    calls = []

    def declare():
        calls.append(importlib.util.find_spec("torchvision"))  # as the real one does

    monkeypatch.setattr(_torchvision, "_declare", declare)
    others = [finder for finder in sys.meta_path if not isinstance(finder, _torchvision._BeforeTorchvision)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    return calls


def test_it_is_asked_once_and_finds_nothing_itself(declared):
    _torchvision.allow_import()
    _torchvision.allow_import()
    assert sum(isinstance(finder, _torchvision._BeforeTorchvision) for finder in sys.meta_path) == 1
    assert importlib.util.find_spec("timm") is not None
    assert not declared
    for _ in range(2):
        assert importlib.util.find_spec("torchvision") is not None
        assert len(declared) == 1
    assert declared[0] is not None, "declaring looks for torchvision itself, and finds it"


def test_the_finder_after_it_is_asked_too(declared):
    second = Recording()
    sys.meta_path.insert(0, second)
    _torchvision.allow_import()
    importlib.util.find_spec("torchvision")
    assert second.asked == ["torchvision", "torchvision"], "by the declaration, and by the search that it was part of"


def test_importing_the_package_leaves_torch_alone():
    code = "import sys, vpeft; print({'torch', 'torchvision'} & set(sys.modules))"
    root = vpeft.__path__[0] + "/.."
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
