"""Pairs of one image and one caption, numbered so that what belongs together is known."""

import json
from typing import Any

import pytest
import torch

from mllm.blip2.data import PairData
from mllm.blip2.text import Words
from mllm.data_schema import DataConfig, FilesConfig
from tests.mllm.blip2.runs import bert, config, write
from vpeft.data.images import UnreadableImage


def data(folder, by_index=False, max_length=8, **settings) -> PairData:
    chosen = config(folder, folder).data
    for name, value in settings.items():
        setattr(chosen, name, value)
    return PairData(chosen, Words(bert(), max_length), (32, 32), "bilinear", (0.5, 0.5, 0.5), 0, by_index)


def first(loader: Any) -> dict[str, torch.Tensor]:
    return next(iter(loader))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs") / "colours", 30)


def test_training_batches_are_all_of_one_size_and_differ_from_epoch_to_epoch(folder):
    pairs = data(folder)
    loader = pairs.train_dataloader()
    epoch = [batch["index"] for batch in loader]
    assert [len(index) for index in epoch] == [8, 8, 8]
    assert torch.cat(epoch).unique().numel() == 24
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(torch.cat(epoch), torch.cat([batch["index"] for batch in loader]))


def test_images_and_captions_have_numbers_and_an_image_is_there_once(folder):
    batch = first(data(folder, eval_batch_size=4).test_dataloader())
    assert batch["image"].tolist() == [batch["image"][0]] * 2 + [batch["image"][2]] * 2
    assert batch["caption"].unique().numel() == 4
    assert batch["images"].shape == (2, 3, 32, 32)
    assert batch["picture"].tolist() == [0, 0, 1, 1]


def test_captions_that_say_one_thing_have_one_number(folder):
    batch = first(data(folder, batch_size=16).train_dataloader())
    ids = [tuple(line) for line in batch["text_ids"].tolist()]
    for i, one in enumerate(ids):
        for j, other in enumerate(ids):
            assert (one == other) == bool(batch["caption"][i] == batch["caption"][j])


def test_numbers_of_images_can_stand_for_their_pixels(folder):
    shown, counted = data(folder, eval_batch_size=4), data(folder, by_index=True, eval_batch_size=4)
    one, two = (first(pairs.test_dataloader()) for pairs in (shown, counted))
    assert torch.equal(counted.pictures.take(two["image_index"]), one["images"])
    assert "images" not in two


def test_captions_that_are_cut_are_counted(folder):
    assert data(folder).provenance["cut"] == 0
    assert data(folder, max_length=6).provenance["cut"] == 8  # `a thing of ...`, five words
    assert data(folder).provenance["captions"] == 16


def test_training_images_are_cropped_and_those_of_an_evaluation_are_not(folder):
    pairs, plain = data(folder, augment="crop_flip"), data(folder)
    loader = pairs.train_dataloader()
    one, again, whole = first(loader), first(loader), first(plain.train_dataloader())
    assert torch.equal(one["images"], again["images"])
    assert torch.equal(one["index"], whole["index"])
    assert not torch.equal(one["images"], whole["images"])
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(one["images"], first(loader)["images"])
    assert torch.equal(first(pairs.test_dataloader())["images"], first(plain.test_dataloader())["images"])


def test_a_conversation_is_no_pair(tmp_path):
    turns = [{"from": role, "value": text} for role, text in (("human", "<image>"), ("gpt", "red")) * 2]
    turns[2]["value"] = "more?"
    record = {"id": "7", "image": "a.png", "conversations": turns}
    (tmp_path / "talk.json").write_text(json.dumps([record]))
    chosen = DataConfig(task="talk", root=tmp_path, files=FilesConfig(train=["talk.json"]))
    with pytest.raises(ValueError, match="sample '7' has 1 images and 2 answers; kind blip2 learns from pairs"):
        PairData(chosen, Words(bert(), 8), (32, 32), "bilinear", (0.5, 0.5, 0.5), 0)


def test_too_few_pairs_for_a_batch_are_refused(folder):
    with pytest.raises(ValueError, match=r"colours has 30 pairs to train on, which do not fill one batch of 64"):
        data(folder, batch_size=64).train_dataloader()


def test_pairs_of_lost_images_are_left_out_and_counted(tmp_path):
    folder = write(tmp_path / "colours")
    (folder / "train3.png").unlink()
    with pytest.raises(UnreadableImage, match=r"train3\.png"):
        data(folder).train_dataloader()
    pairs = data(folder, on_missing="skip")
    with pytest.warns(UserWarning, match=r"Left out: .*train3\.png"):
        pairs.setup()
    assert (pairs.provenance["counts"]["train"], pairs.provenance["skipped"]) == (31, 1)


def lose(pairs, part):
    """The image of the first pair of a part, in a middle that never comes with images in memory."""
    lost = pairs.pictures.position(pairs._samples[part][0].images[0])
    pairs.pictures.failed[lost] = True
    return lost


def test_a_pair_whose_image_is_lost_during_training_is_replaced_by_another(folder):
    pairs = data(folder, batch_size=30)
    loader = pairs.train_dataloader()
    lost = lose(pairs, "train")
    with pytest.warns(UserWarning, match="was lost or damaged during the run"):
        batch = first(loader)
    assert (len(batch["image"]), batch["index"].unique().numel(), batch["lost"].tolist()) == (30, 29, [0])
    assert lost not in batch["image"]
    assert pairs.skipped == 1


def test_a_pair_whose_image_is_lost_during_an_evaluation_is_left_out(folder):
    pairs = data(folder, eval_batch_size=4)
    loader = pairs.test_dataloader()
    lose(pairs, "test")
    with pytest.warns(UserWarning, match="was lost or damaged during the run"):
        batch = first(loader)
    assert (batch["index"].tolist(), batch["lost"].tolist()) == ([2, 3], [0, 1])
    assert batch["picture"].tolist() == [0, 0]
    assert torch.equal(batch["images"][0], pairs.pictures.take(batch["image"])[0])


def test_a_batch_of_an_evaluation_may_have_lost_everything(folder):
    pairs = data(folder, eval_batch_size=2)
    loader = pairs.test_dataloader()
    lose(pairs, "test")
    with pytest.warns(UserWarning, match="was lost or damaged during the run"):
        batch = first(loader)
    assert batch["index"].numel() == len(batch["images"]) == len(batch["text_ids"]) == 0
    assert batch["lost"].tolist() == [0, 1]


def test_images_are_read_again_as_they_were(folder, tmp_path, monkeypatch):
    pairs = data(folder, eval_batch_size=3, workers=1)
    numbers = torch.arange(7)
    batches = list(pairs.images(numbers))
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), pairs.pictures.take(numbers))
    assert [len(batch["image"]) for batch in batches] == [3, 3, 1]
    (only,) = data(folder, by_index=True).images(numbers)
    assert torch.equal(only["image_index"], numbers)
    monkeypatch.setattr("mllm.blip2.data.memory_limit", lambda: 0)
    late = write(tmp_path / "colours")
    pairs = data(late, on_missing="skip")
    pairs.setup()
    (late / "train0.png").unlink()
    with pytest.raises(UnreadableImage, match=r"train0\.png was lost in the middle of an evaluation; restore it, and"):
        list(pairs.images(numbers))
