"""A folder that TFDS prepared gives the same images, labels and lists as the archive that TFDS read.

tests/golden/tfds_cifar100.zip is what TFDS 4.9.10 made of the fake archive of tests/vtab1k/fakes.py, and
tests/golden/tfds_examples.json has records of its CLEVR and KITTI features (tests/golden/make_tfds.py).
"""

from __future__ import annotations

import base64
import json
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vtab1k import fakes, small
from vpeft.vtab1k import originals, tfds
from vpeft.vtab1k.cuts import CUTS
from vpeft.vtab1k.records import parse_example
from vpeft.vtab1k.selection import as_image, pixel_hash

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    small.shrink(monkeypatch, sizes=fakes.SIZES["cifar100"])


def prepared(folder: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / "tfds_cifar100.zip") as opened:
        opened.extractall(folder)
    return folder


def test_records_and_archive_give_the_same_images_labels_and_files(tmp_path: Path) -> None:
    fakes.cifar100(tmp_path, fakes.SIZES["cifar100"])
    # The fake shows 40 of 100 classes, which a whole archive may not.
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(originals, "_check_classes", lambda task, found: None)
        theirs = originals.select("cifar100", tmp_path, accept_other=True)
    ours = tfds.select("cifar100", prepared(tmp_path / "tfds"))
    assert len(ours.images) == len(theirs.images) == 30
    known = {one.file: one for one in theirs.images}
    for one in ours.images:
        other = known[one.file]
        (image, label, name), (array, expected, key) = one.load(), other.load()
        assert label == expected
        assert name == f"{one.split}_{key:05d}"
        assert pixel_hash(as_image(image)) == pixel_hash(as_image(array))
        assert (one.split, one.position) == (other.split, other.position)
    assert ours.facts == {"source": "tfds", "lossy": False, "tfds": "cifar100/3.0.2"}


@pytest.mark.parametrize("name", ["clevr", "kitti"])
def test_distances_and_counts_are_vtabs(name: str, tmp_path: Path) -> None:
    for example in json.loads((GOLDEN / "tfds_examples.json").read_text())[name]:
        fields = parse_example(base64.b64decode(example["record"]))
        for task, label in example["labels"].items():
            assert tfds.PREPARED[task].label(fields) == label
        path = tmp_path / "x.tfrecord"
        path.write_bytes(fakes.tfrecord([base64.b64decode(example["record"])]))
        shard = tfds.Stored(path, "file", path.name, 0, path.stat().st_size)
        task, label = next(iter(example["labels"].items()))
        image, found, stored = tfds._load(task, shard, 12, path.stat().st_size - 16)
        assert (np.asarray(image).shape, found, stored) == (
            (4, 6, 3),
            label,
            {"clevr": "x.png", "kitti": "0.png"}[name],
        )


@pytest.mark.parametrize(("depth", "label"), [(7.99, 0), (8.0, 0), (8.01, 1), (10.0, 4), (10.01, 5)])
def test_a_distance_on_a_bound_is_below_it(depth: float, label: int) -> None:
    fields = {"objects/pixel_coords": [0.0, 0.0, depth, 0.0, 0.0, 30.0]}
    assert tfds.PREPARED["clevr_dist"].label(fields) == label


@pytest.mark.parametrize(
    ("kinds", "depths", "label"),
    [([0], [8.0], 0), ([1, 0], [30.0, 8.1], 1), ([2], [20.1], 2), ([3, 8], [1.0, 2.0], 3), ([], [], 3)],
)
def test_only_cars_vans_and_trucks_are_vehicles(kinds: list[int], depths: list[float], label: int) -> None:
    location = [value for depth in depths for value in (0.0, 0.0, depth)]
    fields = {"objects/type": kinds, "objects/location": location} if kinds else {}
    assert tfds.PREPARED["kitti"].label(fields) == label


def test_dsprites_records_become_black_and_white(tmp_path: Path) -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).save(buffer, "PNG")
    fields = {"image": [buffer.getvalue()], "label_x_position": [31], "label_orientation": [38]}
    path = tmp_path / "dsprites-train.tfrecord-00000-of-00001"
    path.write_bytes(fakes.tfrecord([fakes.tf_example(fields)]))
    shard = tfds.Stored(path, "file", path.name, 0, path.stat().st_size)
    image, label, name = tfds._load("dsprites_loc", shard, 12, len(fakes.tf_example(fields)))
    assert np.asarray(image).tolist() == [[0, 255], [255, 0]]
    assert name is None
    assert (label, tfds._load("dsprites_ori", shard, 12, len(fakes.tf_example(fields)))[1]) == (15, 15)


def sharded(folder: Path, task: str, count: int, shards: int) -> Path:
    """A prepared folder of one class in which the label tells the position."""
    place = folder / tfds.PREPARED[task].path / f"{tfds.PREPARED[task].major}.0.0"
    place.mkdir(parents=True)
    examples = [fakes.tf_example({"image": [b"x"], "label": [i]}) for i in range(count)]
    lengths = [count // shards + (i < count % shards) for i in range(shards)]
    start = 0
    for i, length in enumerate(lengths):
        data = fakes.tfrecord(examples[start : start + length])
        (place / f"{task}-train.tfrecord-{i:05d}-of-{shards:05d}").write_bytes(data)
        start += length
    info = {"splits": [{"name": "train", "shardLengths": [str(length) for length in lengths]}]}
    (place / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_positions_run_on_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.shrink(monkeypatch, "resisc45", {"train": 50})
    monkeypatch.setattr(tfds, "decode", lambda data, where: Image.new("L", (1, 1)))
    images = tfds.select("resisc45", sharded(tmp_path, "resisc45", 50, 7)).images
    places = {part: [one.load()[1] for one in images if one.part == part] for part in ("train", "val", "test")}
    assert places == {"train": list(range(8)), "val": [30, 31], "test": list(range(40, 50))}
    assert [one.number for one in images if one.part == "test"] == list(range(10))


def test_the_newest_version_of_the_right_major_one_is_taken(tmp_path: Path) -> None:
    for version in ("2.9.0", "3.0.2", "3.10.0", "3.9.1", "3.0.2.incomplete", "4.0.0"):
        (tmp_path / "kitti" / version).mkdir(parents=True)
    found = tfds.find("kitti", tmp_path)
    assert found is not None
    assert found.name == "3.10.0"
    assert tfds.find("dmlab", tmp_path) is None


def test_the_pets_of_a_tfds_that_no_longer_makes_vtabs_version_are_taken(tmp_path: Path) -> None:
    # TFDS 4.9.10 knows 4.0.0 alone, whose keys and labels are those of 3.2.0.
    (tmp_path / "oxford_iiit_pet" / "4.0.0").mkdir(parents=True)
    assert tfds.find("oxford_iiit_pet", tmp_path) == tmp_path / "oxford_iiit_pet" / "4.0.0"
    (tmp_path / "oxford_iiit_pet" / "3.2.0").mkdir()
    assert tfds.find("oxford_iiit_pet", tmp_path) == tmp_path / "oxford_iiit_pet" / "3.2.0"


def test_tfds_is_asked_for_pets_that_it_still_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'no version 3\.\*\.\* or 4\.\*\.\*, .*builder\("oxford_iiit_pet:4\.\*\.\*"'):
        tfds.select("oxford_iiit_pet", tmp_path)


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    command = re.escape(f'builder("sun397/tfds:4.*.*", data_dir="{tmp_path}").download_and_prepare()')
    with pytest.raises(ValueError, match=rf"sun397: .* TFDS is not installed. .*{command}"):
        tfds.select("sun397", tmp_path)


def test_tfds_prepares_what_is_missing_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def builder(name: str, data_dir: str) -> object:
        asked.append((name, data_dir))
        return types.SimpleNamespace(download_and_prepare=lambda: prepared(Path(data_dir)))

    module = types.ModuleType("tensorflow_datasets")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.builder = builder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    assert len(tfds.select("cifar100", tmp_path).images) == 30
    assert asked == [("cifar100:3.*.*", str(tmp_path))]

    def fails(name: str, data_dir: str) -> object:
        raise ConnectionError("no route to host")

    module.builder = fails  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"dtd: TFDS could not prepare dtd .*: no route to host"):
        tfds.select("dtd", tmp_path)


def test_a_folder_that_tfds_did_not_finish_or_in_another_format_is_told(tmp_path: Path) -> None:
    place = prepared(tmp_path) / "cifar100" / "3.0.2"
    (shard,) = place.glob("*train*")
    data = shard.read_bytes()
    shard.write_bytes(data[:4000])
    with pytest.raises(ValueError, match="is cut short within the record at byte"):
        tfds.select("cifar100", tmp_path)
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 0 records and not 40, as dataset_info.json says"):
        tfds.select("cifar100", tmp_path)
    shard.rename(place / "cifar100-train.array_record-00000-of-00001")
    with pytest.raises(ValueError, match=r"its files are of the kind array_record, and tfrecord is read"):
        tfds.select("cifar100", tmp_path)
    (place / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match=r"dataset_info.json does not tell the files of the split 'train'"):
        tfds.select("cifar100", tmp_path)


def test_another_number_of_examples_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.shrink(monkeypatch, sizes={"train": 41, "test": 20})
    with pytest.raises(ValueError, match=r"40 examples were found for TFDS's split 'train' and not 41"):
        tfds.select("cifar100", prepared(tmp_path))


def test_every_task_has_a_place_and_a_cut() -> None:
    assert set(tfds.PREPARED) == set(CUTS)
