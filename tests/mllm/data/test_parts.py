"""A run that goes on has the samples it began with, whatever can be read by then."""

from pathlib import Path

import pytest
import torch

from mllm.data.images import Look, Pictures
from mllm.data.parts import Parts
from mllm.data.shelf import Shelf
from mllm.sample import Sample, Turn
from tests.mllm.data.files import write_images

TURNS = (Turn("user", "<image> a"), Turn("assistant", "b"))


def shelf(folder: Path, names: list[str]) -> Shelf:
    return Shelf(Sample(name, (folder / name,), TURNS) for name in names)


def parts(folder: Path, names: list[str]) -> tuple[Parts, Pictures]:
    found = {"train": shelf(folder, names), "test": shelf(folder, names[:2])}
    images = [image for samples in found.values() for sample in samples for image in sample.images]
    return Parts(found), Pictures(images, Look((4, 4)), True, 0)


def ids(samples: Shelf) -> list[str]:
    return [sample.id for sample in samples]


def test_what_could_not_be_read_at_first_stays_out_and_what_vanishes_later_keeps_its_place(tmp_path):
    names = write_images(tmp_path, 4)
    (tmp_path / "1.png").unlink()
    first, pictures = parts(tmp_path, names)
    first.leave_out(pictures)
    assert (ids(first["train"]), ids(first["test"]), first.skipped) == (["0.png", "2.png", "3.png"], ["0.png"], 2)
    state = first.state_dict()
    write_images(tmp_path, 4)
    (tmp_path / "2.png").unlink()
    again, pictures = parts(tmp_path, names)
    again.leave_out(pictures)
    assert ids(again["train"]) == ["0.png", "1.png", "3.png"]
    again.load_state_dict(state)
    assert (ids(again["train"]), ids(again["test"]), again.skipped) == (ids(first["train"]), ["0.png"], 2)
    assert again.state_dict() == state


def test_the_state_is_small_and_can_be_loaded_as_plain_data(tmp_path):
    names = write_images(tmp_path, 3)
    whole, pictures = parts(tmp_path, names)
    whole.leave_out(pictures)
    torch.save(whole.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert state == {"sha256": state["sha256"], "left_out": {"train": [], "test": []}}


@pytest.mark.parametrize("change", ["order", "text", "more"])
def test_other_samples_are_refused(tmp_path, change):
    names = write_images(tmp_path, 3)
    state = parts(tmp_path, names)[0].state_dict()
    others = {
        "order": shelf(tmp_path, names[::-1]),
        "text": Shelf(Sample(name, (tmp_path / name,), (TURNS[0], Turn("assistant", "c"))) for name in names),
        "more": shelf(tmp_path, [*names, "4.png"]),
    }[change]
    with pytest.raises(ValueError, match="its data holds other samples, or in another order, than when it began"):
        Parts({"train": others, "test": shelf(tmp_path, names[:2])}).load_state_dict(state)
