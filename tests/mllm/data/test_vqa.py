from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from mllm.data import vqa
from mllm.sample import Sample, faults
from tests.data import wheels
from vpeft.data.archive import open_archive


def invented(tmp_path: Path, question: str = "{}") -> dict[str, list[Sample]]:
    with open_archive(wheels.write_wheel(tmp_path / "a.whl", wheels.easyvqa())) as archive:
        return vqa.splits(archive, question)


def images(samples: list[Sample]) -> set[str]:
    return {image.name for sample in samples for image in sample.images if hasattr(image, "name")}


def test_no_split_sees_an_image_of_another(tmp_path: Path) -> None:
    found = invented(tmp_path)
    train, val, test = (images(found[part]) for part in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (990, 110, 150)
    assert len(train | val | test) == 1250
    assert not [fault for samples in found.values() for sample in samples for fault in faults(sample)]


def test_a_question_is_put_as_asked_for(tmp_path: Path) -> None:
    sample = invented(tmp_path, "{} Answer in one word.")["test"][0]
    assert sample.turns[0].text.startswith("<image>\n")
    assert sample.turns[0].text.endswith("? Answer in one word.")


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("what is the blue shape?", "circle", "shape"),
        ("what color is the circle?", "blue", "colour"),
        ("is there a circle?", "no", "is_shape"),
        ("is no blue shape present?", "yes", "is_colour"),
    ],
)
def test_the_kind_of_a_question_is_known(question: str, answer: str, kind: str) -> None:
    assert vqa.kind(question, answer) == kind


def test_the_published_package_is_what_its_description_says() -> None:
    found = vqa.read()
    assert {part: len(samples) for part, samples in found.items()} == {"train": 34714, "val": 3861, "test": 9673}
    assert {part: len(images(samples)) for part, samples in found.items()} == {"train": 3600, "val": 400, "test": 1000}
    pixels = [{image.data for s in found[part] for image in s.images} for part in ("train", "val", "test")]  # type: ignore
    assert len(set.union(*pixels)) == sum(map(len, pixels))
    blind = {kind: round(share, 3) for kind, share in vqa.blind(found["train"], found["test"]).items()}
    assert blind == {"shape": 0.347, "colour": 0.116, "is_shape": 0.676, "is_colour": 0.881, "all": 0.669}
    assert all(f"{share:.3f}" in (vqa.__doc__ or "") for share in blind.values())


def test_answers_without_looking_come_from_training_alone() -> None:
    def sample(question: str, answer: str) -> Sample:
        from mllm.sample import Turn

        return Sample("train/0/0/colour", (), (Turn("user", question), Turn("assistant", answer)))

    train = [sample("a", "red"), sample("a", "red"), sample("a", "blue"), sample("b", "blue")]
    test = [sample("a", "red"), sample("a", "blue"), sample("b", "blue"), sample("new", "red")]
    assert vqa.blind(train, test) == {"colour": 0.5, "all": 0.5}


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        opened.writestr("other", b"")
    (tmp_path / "a.whl").write_bytes(data.getvalue())
    with (
        open_archive(tmp_path / "a.whl") as archive,
        pytest.raises(ValueError, match=r"holds no 'easy_vqa/data/train/questions\.json'"),
    ):
        vqa.splits(archive)
