from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.data.wheels import encrypt, write_wheel
from vpeft.data.archive import Folder, open_archive, read_idx, unpickle_array


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("name", ["../out.png", "/etc/passwd", "a/../../b", "a\\b"])
def test_an_archive_with_a_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {name: b""})
    with (
        pytest.raises(ValueError, match=r"a\.whl has the member .* which leads out of the archive"),
        open_archive(wheel),
    ):
        pass


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {"data": bytes(5000)})
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.whl is not a complete zip archive"), open_archive(wheel):
        pass


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {"data": bytes(5000)})
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    wheel.write_bytes(content)
    with open_archive(wheel) as archive, pytest.raises(ValueError, match=r"is damaged at 'data'"):
        archive.read("data")


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {"data": b""})
    with open_archive(wheel) as archive, pytest.raises(ValueError, match=r"holds no 'other'; it is another version"):
        archive.read("other")


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(3)])
def test_an_array_survives_the_restricted_unpickler(array: np.ndarray) -> None:
    loaded = unpickle_array(pickle.dumps(array))
    assert loaded.dtype == array.dtype
    assert np.array_equal(loaded, array)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Harmful()),
        pickle.dumps(np.array([Harmful()], dtype=object)),
        pickle.dumps([1, 2]),
        pickle.dumps(np.array([None], dtype=object)),
        pickle.dumps(np.arange(9))[:-20],
        b"",
    ],
)
def test_a_pickle_of_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="This pickle is not a plain array of numbers"):
        unpickle_array(data)


def test_an_idx_file_is_read() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + array.tobytes()
    assert np.array_equal(read_idx(gzip.compress(data)), array)


@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(b"\0\0\x08", mtime=0), gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", mtime=0)]
)
def test_what_is_no_idx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="This is not a whole IDX file"):
        read_idx(data)


def test_installed_files_are_checked_by_their_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"other")
    source = Folder(tmp_path, {"a": "0" * 64, "b": "0" * 64})
    with pytest.raises(ValueError, match=r"a is not the file that is known"):
        source.read("a")
    with pytest.raises(ValueError, match=r"b is missing"):
        source.read("b")


def test_an_encrypted_archive_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = encrypt(write_wheel(tmp_path / "secret.zip", {"a.txt": b"text"}))
    said = r"^.*secret\.zip is encrypted at 'a\.txt', and nothing here has a password; give the archive as"
    with pytest.raises(ValueError, match=said):
        open_archive(path).__enter__()
