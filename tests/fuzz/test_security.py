"""What somebody else's file may not do: leave its folder, name code, run it, or pass for another one."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.io import savemat

from tests.fuzz import vision
from tests.fuzz.guard import REFUSED, outcome
from tests.vtab1k import fakes
from tests.vtab1k.readers import fakes as pictures
from vpeft import config
from vpeft.backbones.weights import load_file
from vpeft.config import ConfigError
from vpeft.data import ade20k, matlab, pascal_prepare
from vpeft.data.archive import open_archive, unpickle_array
from vpeft.dense import san_weights
from vpeft.fetch import read_member, stays_inside
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers import reader

OUTSIDE = ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "a/b/../../../evil", "//evil"]
KINDS = {
    "link": (tarfile.SYMTYPE, "../../etc/passwd"),
    "absolute link": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": (tarfile.LNKTYPE, "../evil"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(zipfile.ZipInfo(name), b"x")
    return path


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_that_leads_out_of_a_zip_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "a.zip", ["a/b.txt", name])
    with pytest.raises(ValueError, match="leads out of the archive"):
        Archive(path)
    with pytest.raises(ValueError, match="leads out of the archive"), open_archive(path):
        pass
    with pytest.raises(ValueError, match="give one without"):
        read_member(path, name)
    with pytest.raises(ValueError, match="leads out of the archive"):
        ade20k.prepare(tmp_path / "root", str(path))
    assert not [found for found in tmp_path.rglob("*") if "evil" in found.name]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_of_a_tar_archive_are_refused(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        info = tarfile.TarInfo("a/b")
        info.type, info.linkname = KINDS[kind]
        opened.addfile(info)
    with pytest.raises(ValueError, match=r"leads out of the archive|is a device and no file"):
        Archive(tmp_path / "a.tar")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "é", "\\", "/", "...", "~"]), min_size=1, max_size=6))
def test_whatever_is_said_to_stay_inside_does(parts: list[str]) -> None:
    path = "/".join(parts)
    if stays_inside(path):
        assert Path("/top", path).resolve().is_relative_to("/top")


class _Runs:
    """A pickle that would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


READ: dict[str, Callable[[Path], Any]] = {
    "w.pth": load_file,
    "w.bin": load_file,
    "a.pkl": lambda path: unpickle_array(path.read_bytes()),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, name: str, protocol: int) -> None:
    payload = _Runs(tmp_path / "ran")
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(payload, protocol))
    else:
        torch.save({"w": torch.zeros(2), "x": payload}, tmp_path / name, pickle_protocol=protocol)
    assert outcome(lambda: READ[name](tmp_path / name), tmp_path) is REFUSED
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.array([_Runs(tmp_path / "ran")], object), allow_pickle=True)
    (tmp_path / "w.npz").write_bytes(data.getvalue())
    with pytest.raises(ValueError, match=r"not a complete \.npz"):
        vision.create(vision.GOLDEN_VIT, str(tmp_path / "w.npz"), 32)
    assert not (tmp_path / "ran").exists()


TARGETS = ["subprocess.Popen", "os.system", "pathlib.Path.mkdir", "builtins.eval", "torch.hub.load"]
TYPED = ["method", "backbone", "pretrained", "image_size", "head", "head.kind", "data", "data.root", "optim", "seed"]
TYPED += ["output", "name", "train", "train.clip", "protocol", "head.templates", "method.prompts", "embedded"]


@pytest.mark.parametrize("key", TYPED)
@pytest.mark.parametrize("target", TARGETS)
def test_no_setting_makes_an_object_of_a_class_that_a_config_names(tmp_path: Path, key: str, target: str) -> None:
    spec: Any = {"class_path": target, "init_args": {"args": ["mkdir", str(tmp_path / "ran")], "self": "x"}}
    *groups, leaf = key.split(".")
    tree: Any = {leaf: spec}
    for group in reversed(groups):
        tree = {group: {"name": "vpt", **tree} if group == "method" else tree}
    file = tmp_path / "c.yaml"
    file.write_text(str(tree).replace("'", '"'))

    def parsed() -> Any:
        return config.parse([str(file)])

    assert outcome(parsed, tmp_path) is REFUSED
    file.write_text("")
    assert outcome(lambda: config.parse([str(file), f"--{key}", str(spec)]), tmp_path) is REFUSED or key in (
        *("backbone", "pretrained", "data.root", "output", "name"),  # texts, as they stand
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["object/apply:os.system [x]", "name:os.system ''", "module:os ''", "object:os.x {}"])
def test_a_tag_of_python_is_refused(tmp_path: Path, tag: str) -> None:
    (tmp_path / "c.yaml").write_text(f"name: !!python/{tag}\n")
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        config.parse([str(tmp_path / "c.yaml")])


def test_bytes_that_crash_scipys_reader_end_a_process_of_its_own(tmp_path: Path) -> None:
    vision.pascal(tmp_path)
    file = tmp_path / "human_parts/a.mat"
    data = bytearray(file.read_bytes())
    data[692] = 0  # found by fuzzing: SciPy 1.17 then reads beyond an array
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mat"):
        list(pascal_prepare.prepare(tmp_path))


@pytest.mark.parametrize(("task", "name"), [("oxford_flowers102", "setid.mat"), ("svhn", "test_32x32.mat")])
def test_damaged_matlab_archives_of_vtab_end_no_process_but_their_own(tmp_path: Path, task: str, name: str) -> None:
    file = tmp_path / name
    if task == "svhn":
        fakes.svhn(tmp_path, {"train": 2, "test": 2})
        savemat(file, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)})
    else:
        pictures.oxford_flowers102(tmp_path)
    data = bytearray(file.read_bytes())
    data[144] = 5  # found by fuzzing, as above: the kind of numbers
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} .* crashed on it"):
        reader(task).read(tmp_path, task)


def test_after_a_crash_the_next_matlab_file_is_read(tmp_path: Path) -> None:
    pictures.oxford_flowers102(tmp_path)
    data = bytearray((tmp_path / "setid.mat").read_bytes())
    data[144] = 5
    (tmp_path / "bad.mat").write_bytes(data)
    with matlab.apart("fetch it again") as load:
        with pytest.raises(ValueError, match="crashed on it"):
            load(tmp_path / "bad.mat")
        assert load(tmp_path / "setid.mat", ["valid"])["valid"].shape == (1, 20)


def test_a_matlab_file_may_not_take_all_memory(tmp_path: Path) -> None:
    savemat(tmp_path / "big.mat", {"x": np.array([["a", "b"]], object)})
    data = bytearray((tmp_path / "big.mat").read_bytes())
    assert data[160:168] == struct.pack("<2i", 1, 2), "the sizes of x"
    data[160:168] = struct.pack("<2i", 30_000, 30_000)
    (tmp_path / "big.mat").write_bytes(data)
    with (
        matlab.apart("fetch it again") as load,
        pytest.raises(ValueError, match=r"big\.mat is not .*Unable to allocate 6\.71 GiB"),
    ):
        load(tmp_path / "big.mat")


def test_weights_of_san_that_differ_from_their_hash_are_not_used(tmp_path: Path) -> None:
    from tests.dense.clips import small_san

    san = small_san()
    said = {"kind": "openvocab", "format": 1, "vpeft": "0", "clip": {"sha256": san_weights.clip_hash(san)}}
    text = san_weights.json.dumps(said | {"sha256": "0" * 64})
    save_file({k: v.clone() for k, v in san.delta().items()}, tmp_path / "s.safetensors", {"vpeft": text})
    with pytest.raises(ValueError, match="sha256"):
        san_weights.load(san, tmp_path / "s.safetensors")


@settings(suppress_health_check=list(HealthCheck), max_examples=30)
@given(st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3))
def test_a_pattern_of_peft_is_matched_at_once_or_refused(patterns: dict[str, str]) -> None:
    from vpeft.interop.peft_names import pattern

    for key in [*patterns, "(a+)+$", "(.*)*x", ".*.*.*.*.*.*x", "a{1,9999}" * 9]:
        outcome(lambda key=key: pattern({key: 1}, "blocks.0.attn." + "a" * 60, 0), Path("/nowhere"))
