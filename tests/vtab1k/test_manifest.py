"""A manifest that is not the one that was written says how its task is made whole."""

import json
import re
from pathlib import Path

import pytest

from tests.vtab1k import small
from vpeft.vtab1k import manifest
from vpeft.vtab1k.export import export


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small.shrink(monkeypatch)
    return export(small.selection(tmp_path / "archives"), tmp_path / "root")


def again(folder: Path) -> str:
    return re.escape(f"python data_prep/vtab1k.py --tasks cifar100 --root {folder.parent} --source")


def test_another_format_is_refused(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match=f"has the format '9' and not .*{again(folder)}"):
        manifest.read(folder, "cifar100")


def test_the_manifest_of_another_task_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="is of the task 'cifar100' and not of 'dtd'; give the folder its own name back"
    ):
        manifest.read(folder, "dtd")


def test_a_list_that_is_missing_is_named(folder: Path) -> None:
    content = manifest.read(folder, "cifar100")
    (folder / "train800.txt").unlink()
    with pytest.raises(ValueError, match=rf"train800\.txt is missing\. .*{again(folder)}"):
        manifest.check_lists(folder, content, "cifar100")
