"""A task is written whole, the same from every source and number of workers, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vtab1k import small
from vpeft.data import vtab
from vpeft.vtab1k import export as export_module
from vpeft.vtab1k import manifest, reference
from vpeft.vtab1k.export import export
from vpeft.vtab1k.order import place
from vpeft.vtab1k.selection import Chosen, Selection


@pytest.fixture(autouse=True)
def _shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    small.shrink(monkeypatch)


def exported(tmp_path: Path, workers: int = 0) -> Path:
    return export(small.selection(tmp_path / "archives"), tmp_path / "root", workers)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, whose date differs."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != manifest.NAME)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_the_lists_are_vtabs_cut_of_tfds_order(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    train = sorted(range(120), key=lambda i: place(i, "train"))
    test = sorted(range(100), key=lambda i: place(i, "test"))
    listed = {name: (folder / f"{name}.txt").read_text().splitlines() for name in manifest.PARTS}
    # 90 % of 120 lie before val200; the label of fake image i is i % 100.
    assert listed["train800"] == [f"images/train/{n:06d}.png {train[n] % 100}" for n in range(8)]
    assert listed["val200"] == [f"images/val/{n:06d}.png {train[108 + n] % 100}" for n in range(2)]
    assert listed["test"] == [f"images/test/{n:06d}.png {test[n]}" for n in range(100)]
    assert listed["train800val200"] == listed["train800"] + listed["val200"]


def test_the_png_holds_the_pixels_of_the_archive_and_the_manifest_their_hash(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    data = json.loads((folder / manifest.NAME).read_text())
    row = next(row for row in data["images"] if row["file"] == "images/val/000001.png")
    chosen = next(one for one in small.selection(tmp_path / "archives").images if one.file == row["file"])
    pixels, label, key = chosen.load()
    image = Image.open(folder / row["file"])
    assert image.format == "PNG"
    assert (np.asarray(image) == pixels).all()
    assert row["sha256"] == hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    assert (row["label"], row["split"], row["position"], row["key"]) == (label, "train", 109, key)
    assert (row["size"], row["bytes"]) == ([32, 32], (folder / row["file"]).stat().st_size)


def test_the_manifest_tells_counts_and_origin(tmp_path: Path) -> None:
    data = manifest.read(exported(tmp_path), "cifar100")
    assert data["counts"]["test"] == {str(i): 1 for i in range(100)}
    assert sum(data["counts"]["train"].values()) == 8
    assert data["pixels"] == manifest.pixels(data["images"])
    assert (data["source"], data["lossy"], data["exact"], data["classes"]) == ("originals", False, True, 100)
    archive = tmp_path / "archives" / "cifar-100-binary.tar.gz"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert data["archives"] == [
        {"name": archive.name, "bytes": archive.stat().st_size, "sha256": sha256, "known": False}
    ]


def test_another_choice_than_the_published_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference.CHOICE, "cifar100", ("0" * 64, "1" * 64))
    with pytest.warns(UserWarning, match="The images of cifar100 are not those of the index"):
        folder = exported(tmp_path)
    assert manifest.read(folder, "cifar100")["exact"] is False


def test_images_without_the_names_that_the_index_has_are_not_called_the_published_choice(tmp_path: Path) -> None:
    chosen = [Chosen(part, 0, "x", 0, lambda: (np.zeros((3, 5), np.uint8), 0, None)) for part in ("train", "val")]
    facts = {"source": "tfds", "lossy": False}
    assert manifest.read(export(Selection("dtd", chosen, facts), tmp_path), "dtd")["exact"] is None
    assert manifest.read(export(Selection("svhn", chosen, facts), tmp_path), "svhn")["exact"] is True


def test_lists_of_somewhere_else_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "cifar100"
    folder.mkdir(parents=True)
    (folder / "val200.txt").write_text("images/val/000000.jpg 3\n")
    with pytest.raises(ValueError, match=r"has val200.txt and no manifest.json: .* Choose another --root"):
        exported(tmp_path)
    assert contents(folder) == {"val200.txt": b"images/val/000000.jpg 3\n"}


def test_a_folder_is_not_used_while_it_is_made_again(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "images/test/000003.png").unlink()
    (folder / manifest.NAME).write_text("{")
    good = small.selection(tmp_path / "archives")

    def stopped() -> tuple[np.ndarray, int, None]:
        raise ValueError("'x' is not a whole image.")

    with pytest.raises(ValueError, match="not a whole image"):
        export(replace(good, images=[replace(one, load=stopped) for one in good.images]), tmp_path / "root")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        vtab.read(folder, "cifar100", "train800")
    (folder / manifest.NAME).unlink()
    with pytest.raises(ValueError, match="export of cifar100 was stopped"):
        vtab.read(folder, "cifar100", "train800")
    exported(tmp_path)
    assert len(vtab.read(folder, "cifar100", "train800").test) == 100


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    one = contents(exported(tmp_path))
    three = contents(export(small.selection(tmp_path / "archives"), tmp_path / "other", workers=3))
    assert one == three


def test_a_whole_task_is_not_made_again(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    exported(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_an_image_that_is_missing_or_cut_short_is_made_again_and_no_other(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    whole = contents(folder)
    (folder / "images/test/000003.png").unlink()
    (folder / "images/val/000000.png").write_bytes(whole["images/val/000000.png"][:50])
    kept = folder / "images/test/000004.png"
    before = kept.stat().st_mtime_ns
    exported(tmp_path)
    assert contents(folder) == whole
    assert kept.stat().st_mtime_ns == before


def test_a_changed_list_is_written_again(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    text = (folder / "train800.txt").read_text()
    (folder / "train800.txt").write_text(text.replace("000000.png", "000001.png"))
    exported(tmp_path)
    assert (folder / "train800.txt").read_text() == text


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: text.replace('"label": ', '"label": 1', 1)])
def test_a_damaged_manifest_is_not_believed(damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path)
    whole = contents(folder)
    path = folder / manifest.NAME
    path.write_text(damage(path.read_text()))
    made = []
    monkeypatch.setattr(export_module, "_make", lambda *args, make=export_module._make: made.append(1) or make(*args))
    exported(tmp_path)
    assert len(made) == 110
    assert contents(folder) == whole
    assert manifest.read(folder, "cifar100")["counts"]["val"]


def test_a_folder_of_another_source_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    other = small.selection(tmp_path / "archives")
    other = replace(other, facts={"source": "tfds", "lossy": False})
    with pytest.raises(ValueError, match=r"holds cifar100 from another source \(originals\)"):
        export(other, tmp_path / "root")


def test_a_fault_keeps_what_was_made_and_the_next_call_goes_on(tmp_path: Path) -> None:
    good = small.selection(tmp_path / "archives")

    def fail() -> tuple[np.ndarray, int, None]:
        raise ValueError("'x' is not a whole image.")

    at = 90
    images = [replace(one, load=fail) if i == at else one for i, one in enumerate(good.images)]
    with pytest.raises(ValueError, match="not a whole image"):
        export(replace(good, images=images), tmp_path / "root")
    folder = tmp_path / "root" / "cifar100"
    assert len((folder / manifest.JOURNAL).read_text().splitlines()) == 1 + at
    assert vtab.task_folder(tmp_path / "root", "cifar100") is None, "nothing lists what is not whole"
    calls: list[str] = []
    images = [replace(one, load=lambda one=one: calls.append(one.file) or one.load()) for one in good.images]
    export(replace(good, images=images), tmp_path / "root")
    assert calls == [one.file for one in good.images[at:]]
    assert contents(folder) == contents(export(good, tmp_path / "fresh"))
    assert not (folder / manifest.JOURNAL).exists()


def test_a_torn_line_of_the_journal_and_a_torn_image_do_not_count(tmp_path: Path) -> None:
    good = small.selection(tmp_path / "archives")
    folder = export(good, tmp_path / "root")
    whole = contents(folder)
    rows = manifest.read(folder, "cifar100")["images"]
    lines = [json.dumps(line) for line in ({"fingerprint": good.fingerprint}, *rows[:5])]
    (folder / manifest.JOURNAL).write_text("\n".join(lines) + '\n{"part": "train", "fi')
    (folder / manifest.NAME).unlink()
    (folder / rows[2]["file"]).write_bytes(b"\x89PNG")
    (folder / "images/train/.000007.png.tmp").write_bytes(b"half")
    seen: list[int] = []
    export(good, tmp_path / "root", progress=lambda done, total: seen.append(done))
    assert seen[0] == 4
    assert contents(folder) == whole


def test_images_are_on_disk_before_the_journal_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(export_module, "sync", synced.append)
    folder = exported(tmp_path)
    rows = manifest.read(folder, "cifar100")["images"]
    journal = synced.index(folder / manifest.JOURNAL)
    assert {folder / row["file"] for row in rows} < set(synced)
    assert {folder / "images" / part for part in ("train", "val", "test")} < set(synced)
    assert len({path for path in synced[:journal] if path.suffix == ".png"}) == 64, "the first chunk"


KILLED = """
import sys, time
from pathlib import Path
import pytest
from dataclasses import replace
from tests.vtab1k import small
from vpeft.vtab1k.export import export

small.shrink(pytest.MonkeyPatch())
good = small.selection(Path(sys.argv[1]))
def slow(load):
    time.sleep(0.02)
    return load()
from functools import partial
images = [replace(one, load=partial(slow, one.load)) for one in good.images]
export(replace(good, images=images), Path(sys.argv[2]), 2, lambda done, total: print(done, flush=True))
"""


def test_a_killed_export_goes_on_and_no_half_file_counts(tmp_path: Path) -> None:
    small.archives(tmp_path / "archives")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "archives"), str(tmp_path / "root")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) >= 64:
                break
        os.killpg(run.pid, signal.SIGKILL)
    time.sleep(0.1)
    good = small.selection(tmp_path / "archives")
    first: list[int] = []
    folder = export(good, tmp_path / "root", progress=lambda done, total: first.append(done))
    assert first[0] >= 46
    assert contents(folder) == contents(export(good, tmp_path / "fresh"))


def test_a_label_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    chosen = Chosen("train", 0, "train", 0, lambda: (grey, 102, "cat.jpg"))
    with pytest.raises(ValueError, match=r"caltech101: 'cat.jpg' has the label 102; the task has 102 classes"):
        export(Selection("caltech101", [chosen], {"source": "tfds", "lossy": False}), tmp_path)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args, **options) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"images/test/0000\d\d.png could not be written: No space left on device"):
        export(replace(small.selection(tmp_path / "a"), images=small.selection(tmp_path / "a").images[:1]), tmp_path)


@pytest.mark.filterwarnings("ignore:The images of dtd are not those of the index")
@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (np.full((3, 5), 7, np.uint8), "L"),
        (Image.new("RGBA", (5, 3), (10, 20, 30, 0)), "RGB"),
        (Image.new("P", (5, 3)), "RGB"),
    ],
)
def test_grey_stays_grey_and_transparency_is_dropped_without_blending(given, mode: str, tmp_path: Path) -> None:
    chosen = Chosen("train", 0, "train", 0, lambda: (given, 0, "a"))
    export(Selection("dtd", [chosen], {"source": "tfds", "lossy": False}), tmp_path)
    image = Image.open(tmp_path / "dtd/images/train/000000.png")
    assert image.mode == mode
    expected = np.asarray(given) if mode == "L" else np.asarray(given.convert("RGB"))
    assert (np.asarray(image) == expected).all()
