from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from mllm.data.images import read as read_image
from mllm.data.shards import read
from mllm.sample import Held, Turn
from tests.mllm.data.files import ROUND, pixels, write_shard


def test_files_of_one_name_are_a_sample_and_images_stay_in_the_shard(tmp_path: Path) -> None:
    talk = json.dumps({"id": "x", "image": "elsewhere.png", "conversations": ROUND}).encode()
    members = {
        "a/000.png": pixels(0),
        "a/000.txt": b" a cat \n",
        "b/000.json": json.dumps({"caption": "a dog"}).encode(),
        "b/000.png": pixels(1),
        "001.png": pixels(2),
        "001.json": talk,
        "002.json": json.dumps({"conversations": [{**ROUND[0], "value": "Why?"}, ROUND[1]]}).encode(),
        "003.left.png": pixels(3),
        "003.right.PNG": pixels(4),
        "003.txt": b"two",
        "003.cls": b"7",
    }
    samples = list(read(write_shard(tmp_path / "s.tar", members)))
    assert [sample.id for sample in samples] == ["a/000", "b/000", "001", "002", "003"]
    assert samples[0].turns == (Turn("user", "<image>"), Turn("assistant", "a cat"))
    assert samples[1].turns[1].text == "a dog"
    assert samples[2].turns[0].text == "<image>\nWhat colour?"
    assert samples[3].images == ()
    assert samples[4].turns[0].text == "<image><image>"
    seeds = [[0], [1], [2], [], [3, 4]]
    for sample, expected in zip(samples, seeds, strict=True):
        for image, seed in zip(sample.images, expected, strict=True):
            assert read_image(image).tobytes() == read_image(Held("", pixels(seed))).tobytes()


def test_nothing_is_written_whatever_the_names_are(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    shard = write_shard(folder / "s.tar", {"../../evil.png": pixels(0), "../../evil.txt": b"a cat"})
    (sample,) = read(shard)
    assert read_image(sample.images[0]).size == (10, 6)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "s.tar"]


def test_links_and_folders_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as opened:
        link = tarfile.TarInfo("000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        folder = tarfile.TarInfo("000")
        folder.type = tarfile.DIRTYPE
        opened.addfile(link)
        opened.addfile(folder)
    assert list(read(tmp_path / "s.tar")) == []


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"0.png": b"x"}, "sample '0' has no text; one is 0.txt, or 0.json"),
        ({"0.png": b"x", "0.json": b"{}"}, "sample '0' has no text"),
        ({"0.png": b"x", "0.json": b"[1"}, "sample '0' has a text that is not UTF-8 or not JSON"),
        ({"0.png": b"x", "0.json": b"[1]"}, "sample '0' has a text that is not UTF-8 or not JSON"),
        ({"0.png": b"x", "0.txt": b"\xff"}, "sample '0' has a text that is not UTF-8"),
        ({"0.png": b"x", "0.txt": b" "}, "sample '0' has an empty turn"),
        ({"0.json": json.dumps({"conversations": ROUND}).encode()}, "has 1 times <image> and 0 images"),
    ],
)
def test_a_sample_without_its_parts_is_refused(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: {reason}|s\.tar: sample '0' {reason}"):
        list(read(write_shard(tmp_path / "s.tar", members)))


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "s.tar", {"0.png": b"x" * 4000, "0.txt": b"a cat"})
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"s\.tar (ends inside 0\.png|is not a whole, uncompressed tar file)"):
        list(read(whole))
    zipped = write_shard(tmp_path / "z.tar", {"0.txt": b"a"}, "gz")
    with pytest.raises(ValueError, match=r"z\.tar is not a whole, uncompressed tar file .*unpack \.gz"):
        list(read(zipped))
    with pytest.raises(ValueError, match=r"gone\.tar cannot be read: No such file"):
        list(read(tmp_path / "gone.tar"))
