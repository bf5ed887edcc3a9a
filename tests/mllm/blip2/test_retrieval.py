"""What an evaluation says, on sets where the answer is known."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mllm.blip2.model import FirstStage, Pairs
from mllm.blip2.retrieval import Seen, measure, united
from mllm.qformer import QFormer
from tests.mllm.blip2.stages import SIZES, kept


def stage(**options):
    torch.manual_seed(0)
    return FirstStage(QFormer(4, 20, **SIZES, vocab=31, positions=12), 20, embed=14, **options).eval()


def seen(images, texts, pairs):
    """Of given places in the common space, and features; what the stage itself reads is random."""
    count, generator = len(texts), torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30, (count, 6), generator=generator)
    image, caption = 10 * torch.arange(len(images)) + 3, 7 * torch.arange(count)  # parts of the numbers of a data set
    features = torch.randn(len(images), 9, 20, generator=generator)
    at = torch.tensor(pairs)
    found = Seen(
        image,
        F.normalize(images, dim=-1)[:, None].expand(-1, 2, -1),
        caption,
        ids,
        torch.ones_like(ids),
        F.normalize(texts, dim=-1),
        torch.stack([image[at[:, 0]], caption[at[:, 1]]], dim=1),
    )
    return found, features


def measured(made, given, candidates, batch):
    found, features = given
    return measure(made, found, kept(found, features, batch), candidates, batch)


def around(*angles):
    """Directions in a plane, in degrees."""
    turned = torch.tensor(angles) * math.pi / 180
    return torch.stack([turned.cos(), turned.sin()], dim=1)


def test_recall_counts_what_is_among_the_first():
    # Image 0 is nearest to caption 0, image 1 to caption 0 too, image 2 to caption 2.
    found = measured(
        stage(terms=("itc",)), seen(around(0, 20, 90), around(5, 40, 100), [[0, 0], [1, 1], [2, 2]]), 128, 2
    )
    assert found.values["itc_image_r1"] == pytest.approx(2 / 3)
    assert found.values["itc_text_r1"] == pytest.approx(1.0)
    assert found.values["itc_image_r5"] == found.values["itc_text_r5"] == 1.0
    assert found.values["chance_image"] == found.values["chance_text"] == pytest.approx(1 / 3)
    assert found.score == pytest.approx(5 / 6)
    assert found.loss == found.values["itc"]


def test_any_of_several_captions_of_an_image_is_right():
    pairs = [[0, 0], [0, 1], [1, 2]]
    found = measured(stage(terms=("itc",)), seen(around(0, 90), around(2, 40, 80), pairs), 128, 8)
    assert found.values["itc_image_r1"] == 1.0
    assert found.values["chance_image"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.values["chance_text"] == pytest.approx(1 / 2)


def test_shuffled_images_are_those_of_others():
    angles = [30.0 * i for i in range(12)]
    pairs = [[i, i] for i in range(12)]
    found = measured(stage(terms=("itc",)), seen(around(*angles), around(*angles), pairs), 128, 8)
    assert found.values["itc_image_r1"] == 1.0
    assert found.values["shuffled_itc_image_r1"] == found.values["shuffled_itc_text_r1"] == 0.0


def knowing(monkeypatch, made, right):
    """A stage whose ITM answers `right(image, caption)` about numbers that features and captions carry."""

    def matched(features, ids, mask):
        yes = torch.tensor([float(right(int(i), int(t))) for i, t in zip(features[:, 0, 0], ids[:, 0], strict=True)])
        return torch.stack([-10 * yes, 10 * yes - 5], dim=1)

    monkeypatch.setattr(made, "norm", nn.Identity())
    monkeypatch.setattr(made, "matched", matched)


def numbered(given):
    found, features = given
    features[:, 0, 0] = torch.arange(len(features), dtype=torch.float)
    ids = found.ids.clone()
    ids[:, 0] = torch.arange(len(ids))
    return found._replace(ids=ids), features


def test_itm_puts_the_first_candidates_in_order(monkeypatch):
    made = stage(terms=("itc", "itm"))
    knowing(monkeypatch, made, lambda image, caption: image == caption)
    wrong = seen(around(0, 10, 20, 30), around(33, 22, 11, 0), [[i, i] for i in range(4)])
    found = measured(made, numbered(wrong), 128, 3)
    assert found.values["itc_image_r1"] == 0.0
    assert found.values["itm_image_r1"] == found.values["itm_text_r1"] == found.score == 1.0
    assert found.values["itm_accuracy"] == 1.0
    few = measured(made, numbered(wrong), 1, 3)
    assert few.values["itm_image_r1"] == 0.0


def random(count, pairs):
    torch.manual_seed(2)
    return seen(torch.randn(count, 14), torch.randn(len(pairs), 14), pairs)


@pytest.mark.parametrize("batch", [2, 100])
def test_recall_after_itm_is_that_of_asking_about_each_candidate_alone(batch):
    made = stage()
    for parameter in made.parameters():
        parameter.data.normal_(std=0.3)
    given = random(6, [[i // 2, i] for i in range(12)])
    found, features = given
    scores = torch.einsum("iqe,te->itq", found.images, found.texts).amax(dim=-1)
    with torch.no_grad():
        yes = [
            [
                made.matched(made.norm(features[i][None]), found.ids[t][None], found.mask[t][None])[0, 1]
                for t in range(12)
            ]
            for i in range(6)
        ]
    both = scores + torch.tensor(yes)
    right = torch.tensor([[t // 2 == i for t in range(12)] for i in range(6)])
    values = measured(made, given, 3, batch).values
    for name, table, first, wanted in (("image", both, scores, right), ("text", both.T, scores.T, right.T)):
        among = table.masked_fill(~torch.zeros_like(wanted).scatter(1, first.topk(3).indices, True), -torch.inf)
        expected = wanted.gather(1, among.argmax(dim=1, keepdim=True)).float().mean().item()
        assert values[f"itm_{name}_r1"] == pytest.approx(expected)
    assert values["pairs"] == 12


def test_every_image_is_looked_at_once_and_none_is_kept():
    found, features = random(8, [[i, i] for i in range(8)])
    looked, alive = [], []

    def read(numbers):
        for block, made in kept(found, features, 2)(numbers):
            assert sum(reference() is not None for reference in alive) <= 1
            fresh = made.clone()
            looked.extend(block.tolist())
            alive.append(weakref.ref(fresh))
            yield block, fresh
            del fresh

    measure(stage(), found, read, 8, 3)
    assert looked == found.image.tolist()


def test_accuracy_weighs_pairs_and_wrong_pairs_alike(monkeypatch):
    made = stage(terms=("itc", "itm"))
    knowing(monkeypatch, made, lambda image, caption: True)
    found = measured(made, numbered(seen(around(0, 10, 20), around(0, 10, 20), [[i, i] for i in range(3)])), 128, 3)
    assert found.values["itm_accuracy"] == 0.5


def test_the_losses_are_those_of_the_stage_on_the_whole_set():
    made = stage(smoothing=0.0)
    number = torch.arange(5)
    batch, features = seen(torch.randn(5, 14), torch.randn(5, 14), [[i, i] for i in range(5)])
    with torch.no_grad():
        queries, _ = made.qformer(made.norm(features))
        images, texts = made.compared_images(queries), made.compared_texts(batch.ids, batch.mask)
        batch = batch._replace(images=images, texts=texts)
        wanted = made(Pairs(features, batch.ids, batch.mask, number, number))
    found = measured(made, (batch, features), 128, 2)
    assert found.values["itc"] == pytest.approx(float(wanted["itc"]), abs=1e-5)
    assert found.values["itg"] == pytest.approx(float(wanted["itg"]), abs=1e-5)
    assert found.values["shuffled_itg"] != found.values["itg"]
    assert found.loss == pytest.approx(sum(found.values[term] for term in ("itc", "itm", "itg")))


def test_parts_are_united_without_repetition():
    whole, _ = seen(around(0, 10, 20), around(0, 10, 20), [[0, 0], [1, 1], [2, 2]])
    one = Seen(*(field[[0, 2]] for field in whole))
    two = Seen(*(field[[1, 2]] for field in whole))
    two = two._replace(ids=F.pad(two.ids, (0, 2)), mask=F.pad(two.mask, (0, 2)))
    both = united([united([one]), united([two])])
    assert both.pairs.tolist() == [[3, 0], [13, 7], [23, 14]]
    for name in ("image", "images", "caption", "texts"):
        assert torch.equal(getattr(both, name), getattr(whole, name)), name
    assert torch.equal(both.ids[:, :6], whole.ids)
    assert not both.mask[:, 6:].any()
