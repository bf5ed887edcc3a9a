"""A community folder is checked image by image, marked lossy where it is JPEG, and not changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpeft.data import vtab
from vpeft.vtab1k import manifest
from vpeft.vtab1k.community import adopt


def written(root: Path, suffix: str = "jpg", folder: str = "cifar") -> Path:
    """CIFAR-100 in NOAH's layout with 8 / 2 / 10 images, image i of class i."""
    place = root / folder
    lines: dict[str, list[str]] = {}
    for part, stem, count in (("train", "train800", 8), ("val", "val200", 2), ("test", "test", 10)):
        (place / "images" / part).mkdir(parents=True)
        for i in range(count):
            file = f"images/{part}/{i:06d}.{suffix}"
            Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(place / file)
            lines.setdefault(stem, []).append(f"{file} {i}\n")
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for stem, text in lines.items():
        (place / f"{stem}.txt").write_text("".join(text))
    return place


def test_jpeg_is_marked_lossy_and_told(tmp_path: Path) -> None:
    place = written(tmp_path)
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    with pytest.warns(UserWarning, match=r"The images of cifar100 are JPEG.*train800.txt of cifar100 lists 8 images"):
        found = adopt("cifar100", tmp_path)
    assert found == place
    data = manifest.read(place, "cifar100")
    assert (data["source"], data["lossy"], data["folder"]) == ("community", True, None)
    assert data["counts"]["val"] == {"0": 1, "1": 1}
    assert all(file.read_bytes() == data for file, data in before.items())
    row = data["images"][3]
    pixels = Image.open(place / row["file"]).convert("RGB").tobytes()
    assert (row["file"], row["label"], row["size"]) == ("images/train/000003.jpg", 3, [32, 32])
    assert row["sha256"] == hashlib.sha256(pixels).hexdigest()


@pytest.mark.filterwarnings("ignore:train800")
def test_png_is_not_lossy(tmp_path: Path) -> None:
    written(tmp_path, "png", "cifar100")
    assert manifest.read(adopt("cifar100", tmp_path, workers=2), "cifar100")["lossy"] is False


@pytest.mark.filterwarnings("ignore:.*JPEG")
def test_the_manifest_may_lie_elsewhere(tmp_path: Path) -> None:
    place = written(tmp_path / "theirs")
    found = adopt("cifar100", tmp_path / "theirs", tmp_path / "ours")
    assert found == tmp_path / "ours" / "cifar100"
    assert not (place / manifest.NAME).exists()
    assert manifest.read(found, "cifar100")["folder"] == str(place)


@pytest.mark.filterwarnings("ignore:.*JPEG")
def test_a_run_trained_on_it_names_its_source(tmp_path: Path) -> None:
    written(tmp_path)
    before = vtab.read(tmp_path / "cifar", "cifar100", "train800val200").provenance
    assert (before["source"], before["manifest"], before["lossy"]) == (None, None, True)
    adopt("cifar100", tmp_path)
    after = vtab.read(tmp_path / "cifar", "cifar100", "train800val200").provenance
    sha256 = json.loads((tmp_path / "cifar" / manifest.NAME).read_text())["sha256"]
    assert (after["source"], after["manifest"], after["lossy"]) == ("community", sha256, True)


@pytest.mark.filterwarnings("ignore:train800")
def test_the_manifest_of_an_export_is_not_overwritten(tmp_path: Path) -> None:
    place = written(tmp_path, "png", "cifar100")
    facts = {"source": "originals", "lossy": False, "exact": None}
    manifest.write(place, "cifar100", manifest.read(adopt("cifar100", tmp_path), "cifar100")["images"], facts)
    before = (place / manifest.NAME).read_bytes()
    for source, root in ((tmp_path, None), (written(tmp_path / "theirs").parent, tmp_path)):
        with pytest.raises(ValueError, match=r"made from originals, whose manifest.json .* choose another --root"):
            adopt("cifar100", source, root)
    assert (place / manifest.NAME).read_bytes() == before


def test_what_is_missing_or_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cifar100: .* has no folder 'cifar' or 'cifar100' with train800.txt"):
        adopt("cifar100", tmp_path)
    place = written(tmp_path)
    both = place / "train800val200.txt"
    text = both.read_text()
    both.write_text(text.replace("images/val/000001.jpg 1", "images/val/000001.jpg 7"))
    with pytest.raises(ValueError, match=r"train800val200.txt .* is not train800.txt and val200.txt .*: 000001.jpg"):
        adopt("cifar100", tmp_path)
    both.write_text(text)
    test = (place / "test.txt").read_text()
    (place / "test.txt").write_text(test + "images/test/000004.jpg 4\n")
    with pytest.raises(ValueError, match=r"cifar100: 'images/test/000004.jpg' is listed 2 times"):
        adopt("cifar100", tmp_path)
    (place / "test.txt").write_text(test.replace(" 9", " 100"))
    with pytest.raises(ValueError, match=r"test.txt, line 10: label 100 is out of range; cifar100 has 100 classes"):
        adopt("cifar100", tmp_path)


def test_an_image_that_is_cut_short_or_missing_is_named(tmp_path: Path) -> None:
    place = written(tmp_path)
    file = place / "images" / "test" / "000005.jpg"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"test/000005.jpg is not a whole image"):
        adopt("cifar100", tmp_path)
    file.unlink()
    with pytest.raises(OSError, match=r"No such file .*test/000005.jpg"):
        adopt("cifar100", tmp_path)
    assert not (place / manifest.NAME).exists()
