from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.data.captions import read
from mllm.sample import Sample, Turn

A = (Turn("user", "<image>"), Turn("assistant", "a cat, on a chair"))


def write(path: Path, text: str) -> list[Sample]:
    path.write_text(text)
    return list(read(path, path.parent))


def test_tables_and_lists_say_the_same(tmp_path: Path) -> None:
    records = [{"image": "a.png", "caption": "a cat, on a chair"}, {"image": "b.png", "caption": " a dog "}]
    found = {
        "json": write(tmp_path / "a.json", json.dumps(records)),
        "jsonl": write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records))),
        "csv": write(tmp_path / "a.csv", 'image,caption\na.png,"a cat, on a chair"\nb.png, a dog \n'),
        "tsv": write(tmp_path / "a.tsv", "caption\timage\na cat, on a chair\ta.png\na dog\tb.png\n"),
    }
    for kind, samples in found.items():
        assert [sample.images for sample in samples] == [(tmp_path / "a.png",), (tmp_path / "b.png",)], kind
        assert samples[0].turns == A
        assert samples[1].turns[1].text == "a dog"
        assert samples[1].id == "number 2"


def test_several_captions_are_several_samples_and_a_prompt_is_asked(tmp_path: Path) -> None:
    record = {"id": 5, "image": "a.png", "caption": ["one", "two"], "prompt": "Describe."}
    samples = write(tmp_path / "a.json", json.dumps([record]))
    assert [(sample.id, sample.turns[1].text) for sample in samples] == [("5", "one"), ("5", "two")]
    assert samples[0].turns[0].text == "<image>\nDescribe."
    assert [sample.answers for sample in samples] == [("one", "two")] * 2, "each is scored against both"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "file,text\nx,y\n", "needs a first line with 'image' and 'caption'; it has the columns file, text"),
        ("a.csv", "", "it has the columns none"),
        (
            "a.csv",
            "image,caption\n" + "x" * 200000,
            "is not a whole table: field larger than field limit .* Correct it",
        ),
        ("a.csv", "image,caption\na.png,\n", "sample 'number 1' has an empty turn"),
        ("a.csv", "image,caption\na.png\n", "sample 'number 1' has the caption None"),
        ("a.json", '[{"image": "a.png"}]', "sample 'number 1' has no 'image' and 'caption'"),
        ("a.json", '[{"image": "a.png", "caption": 5}]', "has the caption 5; it is a text"),
        ("a.json", '[{"image": "a.png", "caption": []}]', "has an empty list of captions"),
        ("a.json", '[{"image": "a.png", "caption": "an <image>"}]', "has <image> in a text of the assistant"),
        ("a.json", '[{"image": "../a.png", "caption": "x"}]', "which leaves"),
        ("a.json", "[1]", "sample 'number 1' has no 'image'"),
    ],
)
def test_what_is_no_caption_is_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
        write(tmp_path / name, text)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv cannot be read: No such file"):
        list(read(tmp_path / "gone.csv", tmp_path))
    (tmp_path / "a.tsv").write_bytes(b"image\tcaption\na\t\xff\n")
    with pytest.raises(ValueError, match=r"a\.tsv is not UTF-8 text"):
        list(read(tmp_path / "a.tsv", tmp_path))
