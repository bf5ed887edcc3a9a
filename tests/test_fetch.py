import errno
import hashlib
import importlib.util
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.data.wheels import encrypt, write_wheel
from vpeft.fetch import cache_dir, cache_lock, fetch_wheel, read_member, sweep, write_atomic

REQUIREMENT = "tiny-thing==1.0"
WHEEL = "tiny_thing-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel in a folder, configured as a user's own would be."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_thing/data.bin", bytes(range(256)))
        wheel.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        wheel.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / WHEEL


@pytest.fixture
def sha256(index):
    return hashlib.sha256(index.read_bytes()).hexdigest()


@pytest.fixture
def no_pip(monkeypatch):
    """Any use of pip fails the test."""

    def run(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", run)


def test_cache_dir_is_the_users_choice_then_xdg_then_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("VPEFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/someone/.cache/vpeft")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert cache_dir() == Path("/scratch/cache/vpeft")
    monkeypatch.setenv("VPEFT_CACHE", "~/mine")
    assert cache_dir() == Path("/home/someone/mine")


def test_wheel_is_announced_fetched_by_hash_and_kept(cache, index, sha256, capsys):
    wheel = fetch_wheel(REQUIREMENT, sha256, megabytes=12.3)
    assert wheel == cache / "downloads" / WHEEL
    assert wheel.read_bytes() == index.read_bytes()
    captured = capsys.readouterr()
    assert captured.err == f"vpeft: fetching tiny-thing==1.0 (12 MB) with pip into {wheel.parent}\n"
    assert captured.out == ""
    assert [path.name for path in wheel.parent.iterdir() if path.suffix != ".lock"] == [WHEEL]


def test_cached_wheel_needs_no_pip(cache, index, sha256, request):
    first = fetch_wheel(REQUIREMENT, sha256)
    request.getfixturevalue("no_pip")
    assert fetch_wheel(REQUIREMENT, sha256) == first


def test_wheel_put_into_the_cache_by_hand_is_used(cache, index, sha256, no_pip):
    (cache / "downloads").mkdir(parents=True)
    placed = cache / "downloads" / WHEEL
    placed.write_bytes(index.read_bytes())
    assert fetch_wheel("Tiny.Thing==1.0", sha256) == placed


def test_damaged_wheel_in_the_cache_is_fetched_again(cache, index, sha256):
    wheel = fetch_wheel(REQUIREMENT, sha256)
    wheel.write_bytes(wheel.read_bytes()[:-10])
    assert fetch_wheel(REQUIREMENT, sha256).read_bytes() == index.read_bytes()


def test_package_with_another_hash_is_refused(cache, index):
    wrong = "0" * 64
    with pytest.raises(RuntimeError, match=r"DO NOT MATCH THE HASHES.*Expected sha256 0{64}") as caught:
        fetch_wheel(REQUIREMENT, wrong)
    assert f"tiny-thing==1.0 (sha256 {wrong}) could not be fetched" in str(caught.value)
    assert not list((cache / "downloads").glob("*.whl"))
    assert not list((cache / "downloads").glob(".partial*"))


def test_file_that_pip_did_not_check_is_refused(cache, index, sha256, monkeypatch):
    def run(command, **_):
        Path(command[command.index("-d") + 1], WHEEL).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match=r"pip delivered a file with sha256 "):
        fetch_wheel(REQUIREMENT, sha256)
    assert not list((cache / "downloads").glob("*.whl"))


def test_unreachable_index_says_what_failed_and_what_to_do(cache, index, sha256, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(RuntimeError, match=r"No matching distribution found for tiny-thing==1.0") as caught:
        fetch_wheel(REQUIREMENT, sha256)
    message = str(caught.value)
    assert f"put its wheel (pip download --no-deps tiny-thing==1.0, on a machine that can) into {cache}" in message
    assert "set VPEFT_CACHE" in message
    assert sha256 in message


def test_environment_without_pip_is_named(cache, index, sha256, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"has no pip \(python -m ensurepip adds it\)"):
        fetch_wheel(REQUIREMENT, sha256)


@pytest.mark.parametrize("requirement", ["tiny-thing", "tiny-thing>=1.0", "tiny==1\n--index-url=http://x", "../x==1"])
def test_requirement_that_pins_nothing_is_refused(cache, requirement):
    with pytest.raises(ValueError, match=r"does not pin a package; write name==version"):
        fetch_wheel(requirement, "0" * 64)


def test_processes_that_ask_together_share_one_download(cache, index, sha256):
    code = f"from vpeft.fetch import fetch_wheel; print(fetch_wheel({REQUIREMENT!r}, {sha256!r}))"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [out.strip() for out, _ in said] == [str(cache / "downloads" / WHEEL)] * 2
    assert sum(err.count("fetching") for _, err in said) == 1


def test_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeError, match=r"cache cannot be written: .*Set VPEFT_CACHE to a folder that can"):
        cache_lock(tmp_path / "file" / "downloads" / "x")


def test_member_of_an_archive(index):
    assert read_member(index, "tiny_thing/data.bin") == bytes(range(256))


@pytest.mark.parametrize("member", ["../../etc/passwd", "/etc/passwd", "tiny_thing/../../x", "..\\x"])
def test_member_outside_the_archive_is_refused(index, member):
    with zipfile.ZipFile(index, "a") as wheel:
        wheel.writestr(member, "planted")
    with pytest.raises(ValueError, match=r"is not a plain path inside"):
        read_member(index, member)


def test_missing_member_names_near_ones(index):
    with pytest.raises(ValueError, match=r"holds no 'tiny_thing/date.bin'; it has, for example, tiny_thing/data.bin"):
        read_member(index, "tiny_thing/date.bin")


def test_damaged_archive_is_named(index):
    intact = index.read_bytes()
    flipped = intact.replace(bytes(range(256)), bytes(256))
    for content in (intact[: len(intact) // 2], b"", flipped):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=f"{WHEEL} is not a complete zip archive"):
            read_member(index, "tiny_thing/data.bin")


def test_write_atomic_takes_bytes_and_writers(tmp_path):
    write_atomic(tmp_path / "new" / "a.bin", b"one")
    write_atomic(tmp_path / "new" / "a.bin", lambda path: path.write_text("two") and None)
    assert (tmp_path / "new" / "a.bin").read_text() == "two"
    assert os.listdir(tmp_path / "new") == ["a.bin"]


def test_written_file_has_the_users_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "a.safetensors", lambda path: save_file({"w": torch.ones(2)}, path))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662"),  # torch.save
    ],
)
def test_full_disk_leaves_the_previous_file(tmp_path, full):
    path = tmp_path / "adapter.safetensors"
    write_atomic(path, b"previous")

    def write(temporary):
        temporary.write_bytes(b"half of the ne")
        raise full

    with pytest.raises(OSError, match=r"could not be written: .*(No space|unexpected pos).*there is unchanged. Free"):
        write_atomic(path, write)
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == [path.name]


def test_full_disk_at_the_last_flush_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "results.yaml"
    write_atomic(path, b"previous")

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device"):
        write_atomic(path, b"next")
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == [path.name]


def test_interrupted_writer_leaves_no_temporary_file(tmp_path):
    def write(temporary):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.bin", write)
    assert os.listdir(tmp_path) == []


def test_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"a.bin could not be written: .*no file is left behind"):
        write_atomic(tmp_path / "file" / "a.bin", b"x")


def test_an_encrypted_archive_is_refused_in_a_sentence(tmp_path):
    path = encrypt(write_wheel(tmp_path / "secret.zip", {"a.txt": b"text"}))
    said = r"^.*secret\.zip is encrypted at 'a\.txt', and nothing here has a password; give the archive as"
    with pytest.raises(ValueError, match=said):
        read_member(path, "a.txt")


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    left = [".a.json.0123abcd.tmp", ".b[1].0123abcd.tmp"]
    others = [".a.json.tmp", "a.json.0123abcd.tmp", ".a.json.0123abcx.tmp", "a.json"]
    for name in left + others:
        (tmp_path / name).touch()
    sweep(tmp_path, "b[1]")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([left[0], *others])
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)
