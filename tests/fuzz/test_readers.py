"""Whatever the bytes of an outside file, its reader gives a value or one sentence, and does nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import folders, language, runs, vision, vtab1k
from tests.fuzz.guard import REFUSED, outcome
from tests.fuzz.reader import Reader, signed

READERS = vision.READERS | vtab1k.READERS | language.READERS | runs.READERS | folders.READERS
FEW, MANY = 8, 1000


def tried(reader: Reader, folder: Path, examples: int) -> tuple[int, int]:
    """Read damaged files; returns how many were refused, and how many gave a value."""
    reader.make(folder)
    archive, whole = (folder / reader.file).read_bytes(), reader.content(folder)
    assert reader.read(folder) is not REFUSED  # what is sound is read, and imports what it needs
    counts = [0, 0]

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(reader.damage(whole))
    def attempt(data: bytes) -> None:
        reader.put(folder, archive, data)
        counts[outcome(lambda: reader.read(folder), folder) is not REFUSED] += 1

    attempt()
    return counts[0], counts[1]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    refused, _ = tried(READERS[name], tmp_path, FEW)
    assert refused or READERS[name].skips


# What a campaign found and FEW examples do not: each was another exception than a sentence.
FOUND = {
    "vtab lists": b"images/train/000000.png " + b"9" * 5000,
    "community lists": "images/train/000000.png ²".encode(),
    "tfds info": b"[" * 30_000,
    "kitti order": b"9" * 5000,
    "pets": b"Abyssinian_1 " + b"9" * 5000 + b" 1 1",
    "retinopathy": b"image,level\n" + b"x" * 200_000 + b",1",
    "clevr scenes": b'{"scenes": [{"image_filename": "x", "objects": [{"pixel_coords": [0, 0, null]}]}]}',
    "conversations .json": b'[{"conversations": [{"from": ["human"], "value": "x"}]}]',
    "pickled array": b"\x80\x04\x95\xa5\x00\x00\x00\x00\xff\xff\xff",
    "suite members": b'{"id": "a"}',
    "suite members, at work": b"",  # the items name what is not there
    "suite items": b'{"index": 0, "phase": "final", "members": ["x"]}',
    "suite rows": b'{"suite": []}',
    "suite rows, tuning": b'{"suite": []}',
    "suite note": b'{"code": 1}',
    "suite choices": b'{"lora": []}',
    "suite peers": b'[["a", true]]',
    "job arrays": b'{"job": "1", "first": 0, "size": 0, "members": [0]}',
    "job events": b'{"event": "end"}\n\xff',
    "run record": b'{"id": "a"}',
    "run result": b"[1]",
    "search record": b"[1]",
    "checkpoint with a true hash": signed(b""),
    "vtab manifest with a true hash": b'{"format": "vpeft-vtab1k-1"}',
    "classifier .npz": b"x",
    "VOC list": b"\xff",
    "names of classes": b"\xff",
    "embedded manifest": b'{"files": {}, "content": "c"}',
    "export's journal": b'{"fingerprint": "f"}\n[]\n',
    "transformers config": b"[" * 30_000,
    "transformers preprocessing": b"{",
    "transformers weights": b"x",
    "benchmark, epochs": b'{"kind": "", "setting": {}, "runs": []}',
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.make(tmp_path)
    archive = (tmp_path / reader.file).read_bytes()
    reader.read(tmp_path)
    reader.put(tmp_path, archive, FOUND[name])
    assert outcome(lambda: reader.read(tmp_path), tmp_path) is REFUSED or reader.skips


# Pixels of a PNG file that go on in a chunk without letters as its name: Pillow calls that a SyntaxError.
@pytest.mark.parametrize("name", ["PASCAL, semantic", "PASCAL, normals", "VOC mask", "COCO-Stuff mask", "ADE20K mask"])
def test_an_image_with_a_broken_chunk_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.make(tmp_path)
    data = (tmp_path / reader.file).read_bytes()
    start = data.index(b"IDAT")
    reader.put(tmp_path, data, data[: start - 4] + b"\0\0\0\1" + data[start : start + 5] + bytes(40))
    assert outcome(lambda: reader.read(tmp_path), tmp_path) is REFUSED


def test_a_size_of_images_that_fits_no_memory_is_refused_in_a_sentence(tmp_path: Path) -> None:
    reader = READERS["adapter with a true hash"]
    reader.make(tmp_path)
    text = (tmp_path / reader.file).read_text()
    (tmp_path / reader.file).write_text(text.replace("[32, 32]", "[8000000, 8000000]"))
    assert outcome(lambda: reader.read(tmp_path), tmp_path) is REFUSED


def test_a_rule_of_selection_that_nobody_knows_is_reported_by_its_name(tmp_path: Path) -> None:
    reader = READERS["result rows"]
    reader.make(tmp_path)
    text = (tmp_path / reader.file).read_text()
    (tmp_path / reader.file).write_text(text.replace('"rule": "last"', '"rule": "<b>"'))
    assert "&lt;b&gt;" in reader.read(tmp_path)[0].decode()


def test_a_row_with_a_truth_where_others_have_a_word_is_left_out(tmp_path: Path) -> None:
    reader = READERS["result rows"]
    reader.make(tmp_path)
    text = (tmp_path / reader.file).read_text()
    (tmp_path / reader.file).write_text(text.replace('"train800val200"', "true", 1))
    assert b"of another form" in reader.read(tmp_path)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_damaged_files_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    refused, read = tried(READERS[name], tmp_path, MANY)
    print(f"{name}: {refused} refused, {read} read")
    assert refused or READERS[name].skips
