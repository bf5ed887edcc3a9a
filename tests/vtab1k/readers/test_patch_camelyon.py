"""PatchCamelyon's files are unpacked beside their archives, and what is there is compared with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vtab1k.readers import fakes
from vpeft.vtab1k.readers import patch_camelyon, reader


def test_what_was_unpacked_from_another_archive_is_unpacked_again(tmp_path: Path) -> None:
    fakes.patch_camelyon(tmp_path)
    archive = tmp_path / reader("patch_camelyon").ARCHIVES[0].name
    unpacked = patch_camelyon._unpacked(archive)
    whole, before = unpacked.read_bytes(), unpacked.stat().st_mtime_ns
    assert patch_camelyon._unpacked(archive).stat().st_mtime_ns == before
    unpacked.write_bytes(whole[:-1] + b"?")  # as long, so that only the checksum tells
    assert patch_camelyon._unpacked(archive).read_bytes() == whole


def test_without_h5py_patch_camelyon_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.patch_camelyon(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="pip install h5py, or the extra `data`"):
        patch_camelyon.read(tmp_path, "patch_camelyon")
