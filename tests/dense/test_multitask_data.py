"""Scenes for several tasks: rendered ones, and PASCAL-Context in files that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vpeft.data import pascal_context, pascal_prepare
from vpeft.data.multitask import MultiTaskData, SceneBatches
from vpeft.data.pascal_context import PascalContext
from vpeft.data.shapes import Shapes
from vpeft.dense.multitask_schema import MultiTaskDataConfig

TASKS = ["semseg", "human_parts", "saliency", "normals"]
SIZE = (32, 48)


def test_a_rendered_scene_follows_from_seed_part_and_index_alone():
    scenes = Shapes(4, SIZE, part=0, seed=3)
    one, again = scenes.load(2), Shapes(9, SIZE, part=0, seed=3).load(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in (scenes.load(1), Shapes(4, SIZE, 1, 3).load(2), Shapes(4, SIZE, 0, 4).load(2)):
        assert not torch.equal(one["image"], other["image"])


def test_labels_of_a_rendered_scene_agree_with_each_other():
    seen = set()
    for index in range(12):
        scene = Shapes(12, SIZE, 0).load(index)
        assert scene["image"].dtype == torch.uint8
        assert tuple(scene["image"].shape) == (3, *SIZE)
        torch.testing.assert_close(scene["normals"].norm(dim=0), torch.ones(SIZE), atol=1e-5, rtol=0)
        assert (scene["normals"][2] >= 0).all(), "nothing seen points away from the camera"
        wall = scene["semseg"] == 0
        assert (scene["normals"][2][wall] == 1).all()
        assert not scene["saliency"][wall].any()
        parts = scene["human_parts"]
        if (parts == 255).all():
            assert not (scene["semseg"] == 3).any()
        else:
            assert torch.equal(parts > 0, scene["semseg"] == 3)
        seen |= set(scene["semseg"].unique().tolist()) | {f"part {p}" for p in parts.unique().tolist()}
        colour = scene["image"].float()
        grey = (colour.max(0).values - colour.min(0).values)[scene["saliency"] == 0]
        assert grey.max() < 60, "what is not salient is grey"
    assert seen >= {0, 1, 2, 3, *(f"part {p}" for p in range(7))}


def test_a_mirrored_batch_mirrors_every_label_and_turns_normals():
    scenes = Shapes(8, SIZE, 0)
    batch = SceneBatches(scenes, TASKS, seed=0, flip=True)[0, list(range(8))]
    plain = SceneBatches(scenes, TASKS)[0, list(range(8))]
    turned = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    mirrored = 0
    for i in range(8):
        if torch.equal(batch["image"][i], plain["image"][i]):
            assert all(torch.equal(batch[task][i], plain[task][i]) for task in TASKS)
            continue
        mirrored += 1
        for task in ("image", *TASKS[:3]):
            assert torch.equal(batch[task][i], plain[task][i].flip(-1))
        assert torch.equal(batch["normals"][i], plain["normals"][i].flip(-1) * turned)
    assert 0 < mirrored < 8
    again = SceneBatches(scenes, TASKS, seed=0, flip=True)[0, [5]]
    assert torch.equal(again["image"][0], batch["image"][5]), "a scene's change does not depend on its neighbours"


def test_the_data_module_has_batches_of_the_named_tasks_and_its_outputs():
    data = MultiTaskData(
        MultiTaskDataConfig(tasks=["saliency", "normals"], train_scenes=5, val_scenes=3, batch_size=2), SIZE, 0
    )
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert set(batches[0]) == {"image", "index", "saliency", "normals"}
    assert data.outputs == {"saliency": 1, "normals": 3}
    assert sum(len(batch["index"]) for batch in data.val_dataloader()) == 3


def test_a_resumed_run_goes_on_with_the_batch_that_was_due():
    config = MultiTaskDataConfig(train_scenes=8, val_scenes=1, batch_size=2)
    whole = [batch["index"].tolist() for batch in MultiTaskData(config, SIZE, 0).train_dataloader()]
    resumed = MultiTaskData(config, SIZE, 0)
    resumed.load_state_dict({"epoch": 0, "batch": 2})
    assert [batch["index"].tolist() for batch in resumed.train_dataloader()] == whole[2:]
    assert resumed.state_dict() == {"epoch": 0, "batch": 2}


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images a split, one of them with a person; what the download holds, but for its MATLAB files."""
    rng = np.random.default_rng(0)
    lists = tmp_path / "ImageSets" / "Context"
    lists.mkdir(parents=True)
    for part, names in (("train", ["a", "b"]), ("val", ["c", "d"])):
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            png(tmp_path / "JPEGImages" / f"{name}.jpg", rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
            mask = np.zeros((40, 60), np.uint8)
            mask[10:20, 10:30], mask[:2] = 15, 255
            folder = "VOC12" if name in "ac" else "pascal-context"
            png(tmp_path / "semseg" / folder / f"{name}.png", mask)
            vectors = np.full((40, 60, 3), (128, 128, 255), np.uint8)
            vectors[:, :30] = (255, 128, 128)
            png(tmp_path / "normals_distill" / f"{name}.png", vectors)
            saliency = np.zeros((40, 60), np.uint8)
            saliency[:, 30:], saliency[:, :30] = 200, 100
            png(tmp_path / "sal_distill" / f"{name}.png", saliency)
    return tmp_path


def struct(*fields: Any) -> np.void:
    """A MATLAB struct of one element, as scipy reads it."""
    record = np.empty(1, dtype=[(f"f{i}", object) for i in range(len(fields))])
    record[0] = fields
    return record[0]


def cells(*items: Any) -> np.ndarray:
    array = np.empty((1, len(items)), dtype=object)
    for i, item in enumerate(items):
        array[0, i] = item
    return array


def mats(path: Path) -> dict[str, Any]:
    """In the place of scipy: a person in a and c, a dog in the others; labels of PASCAL-Context."""
    if path.parent.name == "trainval":
        labels = np.full((40, 60), 3)  # a class that normals count in
        labels[20:] = 2
        return {"LabelMap": labels}
    head, arm = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    head[10:14, 10:30], arm[14:20, 10:20] = 1, 1
    parts = cells(struct(np.array(["hair"]), head), struct(np.array(["llarm"]), arm))
    kind = 15 if path.stem in "ac" else 12
    thing = struct(np.array(["x"]), np.array([[kind]]), head | arm, parts)
    return {"anno": cells(struct(np.array(["im"]), cells(thing)))}


def prepared(root: Path) -> Path:
    assert list(pascal_prepare.prepare(root, mats))[-1] == (4, 4)
    return root


def test_a_prepared_download_is_read_as_the_public_codes_do(root):
    data = PascalContext(prepared(root), "train", TASKS, (20, 30))
    with_person, without = data.load(0), data.load(1)
    assert len(data) == 2
    assert tuple(with_person["image"].shape) == (3, 20, 30)
    assert set(with_person["semseg"].unique().tolist()) == {0, 15, 255}
    assert with_person["human_parts"][6, 10] == 1
    assert with_person["human_parts"][8, 6] == 4
    assert (without["human_parts"] == 255).all(), "nobody to label: nothing counts"
    assert not with_person["saliency"][:, :15].any()
    assert with_person["saliency"][:, 15:].all()
    normals = with_person["normals"]
    assert (normals[:, 13:] == 0).all(), "a class that the network has not seen"
    torch.testing.assert_close(normals[:, 4, 2], torch.tensor([1.0, 0.0, 0.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(normals[:, 4, 27], torch.tensor([0.0, 0.0, 1.0]), atol=1e-2, rtol=0)


def test_preparing_goes_on_where_it_stopped_and_the_published_counts_are_verified(root):
    steps = pascal_prepare.prepare(root, mats)
    next(steps), next(steps)
    steps.close()
    first = root / "human_parts" / "a.png"
    written = first.stat().st_mtime_ns
    prepared(root)
    assert first.stat().st_mtime_ns == written
    faults = pascal_prepare.verify(root)
    assert faults == [
        "train.txt names 2 images, and the published split has 4998.",
        "val.txt names 2 images, and the published split has 5105.",
    ]


def test_an_unknown_part_of_a_person_is_told_with_the_file(root):
    def odd(path: Path) -> dict[str, Any]:
        content = mats(path)
        if path.parent.name != "trainval":
            content["anno"][0][0][1][0][0][3][0][0][0][0] = "tail"
        return content

    with pytest.raises(ValueError, match=r"a\.mat: there is no part 'tail' of a person"):
        list(pascal_prepare.prepare(root, odd))


def test_what_is_missing_or_wrong_is_said_with_its_path(root):
    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            PascalContext(root, "train", TASKS, (20, 30)).load(0)

    refused(r"human_parts/a\.png is missing\. It is made by: python data_prep/pascal_context\.py --root")
    prepared(root)
    mask = np.zeros((40, 60), np.uint8)
    file = root / "semseg" / "VOC12" / "a.png"
    png(file, np.zeros((40, 60, 3), np.uint8))
    refused(r"VOC12/a\.png holds colours; save class numbers")
    mask[3, 3] = 21
    png(file, mask)
    refused(r"VOC12/a\.png holds the class 21; there are 21, from 0 on")
    png(file, np.zeros((40, 60), np.uint16))
    refused("holds .*int.* values; save class numbers as one channel of 8 bits")
    png(file, np.zeros((41, 60), np.uint8))
    refused(r"a\.png is 60x41 and its image 60x40")
    file.write_bytes(b"no")
    refused(r"a\.png is not a whole image")
    file.unlink()
    refused(r"a\.png is missing\. The download is not whole")
    (root / "ImageSets/Context/train.txt").write_text("a\na\n")
    refused("train.txt names a twice")
    (root / "ImageSets/Context/train.txt").unlink()
    refused(r"train\.txt is missing\. data\.root is the folder PASCAL_MT")


def test_the_command_tells_what_is_not_whole(root, capsys, monkeypatch):
    import runpy

    main = runpy.run_path(str(Path(__file__).parents[2] / "data_prep/pascal_context.py"))["main"]
    prepared(root)
    assert main(["--root", str(root), "--verify"]) == 1
    assert "published split has 4998" in capsys.readouterr().err
    monkeypatch.setitem(pascal_context.COUNTS, "train", 2)
    monkeypatch.setitem(pascal_context.COUNTS, "val", 2)
    assert main(["--root", str(root)]) == 0
    assert "is whole" in capsys.readouterr().out
