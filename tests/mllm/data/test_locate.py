from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.data.locate import locate
from mllm.data_schema import DataConfig, FilesConfig
from tests.mllm.data.files import ROUND, pixels, write_images, write_shard
from vpeft.data.ranking import ranked


def config(root: Path | None, task: str = "mine", **files: list[str]) -> DataConfig:
    return DataConfig(task=task, root=root, files=FilesConfig(**files))


def test_what_a_file_is_is_seen_from_its_content(tmp_path: Path) -> None:
    (name,) = write_images(tmp_path / "images", 1)
    image = f"images/{name}"
    (tmp_path / "talks.json").write_text(json.dumps([{"id": "t", "image": image, "conversations": ROUND}]))
    (tmp_path / "captions.json").write_text(json.dumps([{"id": "c", "image": image, "caption": "x"}]))
    (tmp_path / "more.tsv").write_text(f"image\tcaption\tid\n{image}\ty\td\n")
    for i in range(2):
        write_shard(tmp_path / f"shard-{i}.tar", {f"s{i}.png": pixels(i), f"s{i}.txt": b"z"})
    files = ["talks.json", "captions.json", "more.tsv", "shard-*.tar"]
    shelves, facts = locate(config(tmp_path, train=files, test=["talks.json"]))
    assert [sample.id for sample in shelves["train"]] == ["t", "c", "d", "s0", "s1"]
    assert {part: len(shelf) for part, shelf in shelves.items()} == {"train": 5, "val": 0, "test": 1}
    assert facts["format"] == "files"


def test_sets_without_files_have_their_parts() -> None:
    shelves, facts = locate(DataConfig(task="rendered_pairs", count=120))
    assert {"train", "val", "test", "held_out"} == set(shelves)
    assert len({image for sample in shelves["train"] for image in sample.images}) == 120
    assert len({image for sample in shelves["held_out"] for image in sample.images}) == 100
    assert facts["synthetic"]


@pytest.mark.parametrize(
    ("task", "root", "files", "reason"),
    [
        ("easyvq", "", {}, r"data.task 'easyvq' has no files; did you mean 'easyvqa'\?"),
        ("mine", None, {"train": ["a.json"]}, "data.root is not set; give the folder"),
        ("mine", "gone", {"train": ["a.json"]}, "gone is not a folder"),
        ("mine", "", {"train": ["a.json"]}, r"data.files.train: there is no 'a\.json' in .*; a pattern is written as"),
        ("mine", "", {"train": ["/a.json"]}, "data.files.train: '/a.json' must be a path or a pattern below data.root"),
        ("mine", "", {"train": ["a.tar.gz"]}, r"a\.tar\.gz is of no known kind; there are \.json"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, task: str, root: str | None, files: dict[str, list[str]], reason: str
) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=reason):
        locate(config(None if root is None else tmp_path / root, task, **files))


def test_a_limit_keeps_test_samples_by_their_hashes_and_says_of_how_many() -> None:
    whole, facts = locate(DataConfig(task="rendered", count=5))
    limited, said = locate(DataConfig(task="rendered", count=5, test_limit=7))
    ids = [sample.id for sample in whole["test"]]
    order = ranked(range(len(ids)), "rendered-test", ids)
    assert [sample.id for sample in limited["test"]] == [ids[i] for i in sorted(order[:7])]
    assert facts["test_of"] == said["test_of"] == len(ids) > 7
    assert len(limited["train"]) == len(whole["train"])
    assert len(locate(DataConfig(task="rendered", count=5, test_limit=10**6))[0]["test"]) == len(ids)


def test_no_test_samples_at_all_are_refused() -> None:
    (found,) = DataConfig(test_limit=0).conflicts()
    assert found == ("data.test_limit", "data.test_limit must be at least 1, not 0")
