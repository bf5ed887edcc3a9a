"""Data that shrink or change while a run reads them: one sentence with the file and what to do, and the run goes on."""

import os

import pytest

from tests.data.layouts import write_image
from tests.runs import tiny_config, write_images
from tests.segmentation_runs import own_data, writer
from vpeft.config import parse, to_yaml
from vpeft.data import annotated, cache
from vpeft.data.images import UnreadableImage
from vpeft.data.listing import Split
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.tasks.classification import Classification

GONE = r"is gone, which was there when the run began\. Leave the data as they are while a run reads them; put the file "
OTHER = r"is not the file any more that it was when the run began\. Leave"


@pytest.fixture
def streamed(monkeypatch):
    """Nothing is kept in memory: every batch reads its files."""
    for module in ("classification", "segmentation"):
        monkeypatch.setattr(f"vpeft.data.{module}.memory_limit", lambda: 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_ends_the_run_which_goes_on_when_it_is_back(
    tool,
    streamed,
    tmp_path,
    monkeypatch,
    workers,
):
    root = write_images(tmp_path / "colors")
    config = tiny_config(root, tmp_path / "out", epochs=3)
    config.data.workers = workers
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    start = Classification.on_train_epoch_start

    def lose(self):
        start(self)
        if self.current_epoch == 1:
            for file in (root / "red").iterdir():
                file.rename(tmp_path / f"kept-{file.name}")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "on_train_epoch_start", lose)
        ended = tool("train", tmp_path / "run.yaml")
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {root / 'red'}/")
    assert line.endswith("put the file back, and --train.resume true goes on from the last checkpoint.")
    assert not (tmp_path / "out" / "results.jsonl").exists()
    for file in tmp_path.glob("kept-*"):
        file.rename(root / "red" / file.name.removeprefix("kept-"))
    assert tool("train", tmp_path / "run.yaml", "--train.resume", "true").code == 0
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 1


def test_a_file_that_is_replaced_is_not_read_in_silence(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i)
    split = Split([tmp_path / f"{i}.png" for i in range(3)], [0, 1, 0])
    images = cache.Images(split, (8, 8), "squash", "bilinear", False, limit=0)
    before = images._steady.read(2, images._load)
    write_image(tmp_path / "1.png", 0)
    os.utime(tmp_path / "1.png", ns=(1, 1))
    with pytest.raises(UnreadableImage, match=rf"1\.png {OTHER}"):
        images._steady.read(1, images._load)
    assert images._steady.read(2, images._load).equal(before)
    (tmp_path / "2.png").unlink()
    with pytest.raises(UnreadableImage, match=rf"2\.png {GONE}"):
        images._steady.read(2, images._load)


def test_positions_stay_right_where_files_were_skipped(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", i)
    (tmp_path / "0.png").write_bytes(b"")
    split = Split([tmp_path / f"{i}.png" for i in range(4)], [0, 1, 0, 1])
    images = cache.Images(split, (8, 8), "squash", "bilinear", True, limit=0)
    (tmp_path / "3.png").unlink()
    with pytest.raises(UnreadableImage, match=rf"3\.png {GONE}"):
        images._steady.read(2, images._load)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_mask_or_its_image_that_is_lost_is_named(streamed, tmp_path, monkeypatch, part):
    root = own_data(tmp_path)
    file = sorted((root / part / "train").iterdir())[0]
    real, seen = annotated.Annotated.__getitem__, []

    def lose(self, position):
        if len(seen) == 12 and file.exists():
            file.unlink()
        seen.append(position)
        return real(self, position)

    monkeypatch.setattr(annotated.Annotated, "__getitem__", lose)
    with pytest.raises(UnreadableImage, match=rf"{file.name} {GONE}"):
        train(parse([writer(tmp_path, root)()]))
