"""Queries of a method reach the head that takes them, and nothing makes queries in vain."""

import pytest
import torch

from tests.zoo import backbone, image
from vpeft.dense.decoders import Decoders
from vpeft.dense.layers import Layers
from vpeft.heads import LinearHead
from vpeft.heads.mask import MaskHead
from vpeft.methods import build
from vpeft.tuned import Tuned

REIN = {"name": "rein", "tokens": 6, "rank": 3, "query_dim": 32}
SMALL = {"width": 32, "queries": 6, "encoder_layers": 1, "decoder_layers": 1, "heads": 4, "points": 16}


def dense(spec, linked: bool, **options) -> Tuned:
    torch.manual_seed(0)
    body = backbone("timm_vit")
    neck = Layers(body, [0, 1])
    neck.channels, neck.rescale = [32] * 4, Doubled()
    head = MaskHead(neck.channels, 5, **SMALL | options, linked=linked)
    return Tuned(body, build(spec, body), Decoders(head, [], 0.4, False, 255), neck=neck)


class Doubled(torch.nn.Module):
    """Four maps of two."""

    def forward(self, maps):
        sides = (16, 8, 4, 2)
        return [torch.nn.functional.interpolate(maps[i // 2], side, mode="bilinear") for i, side in enumerate(sides)]


def test_everything_that_makes_queries_learns_from_the_head_that_takes_them():
    model = dense(REIN, linked=True)
    model(image(), torch.randint(0, 5, (2, 64, 64)))["head"].backward()
    makers = [*model.methods.named_parameters(), *model.head.head.to_features.named_parameters()]
    assert [name for name, p in makers if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in model.trainable() if p.grad is None] == []


def test_an_adapter_of_both_gives_the_same_predictions():
    model, again = dense(REIN, linked=True).eval(), dense(REIN, linked=True).eval()
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(0.01)
        again.load_delta(model.delta())
        assert torch.equal(again(image()), model(image()))


@pytest.mark.parametrize(
    ("spec", "linked", "sentence"),
    [
        ({"name": "lora"}, True, "mask: linked is true, and no method makes queries. Use method rein with query_dim"),
        ({**REIN, "query_dim": None}, True, "mask: linked is true, and no method makes queries"),
        (REIN, False, "rein: query_dim is 32, and the head takes no queries"),
        ([REIN, REIN], True, "rein and rein both make queries, and a head takes one set"),
        ({**REIN, "tokens": 7}, True, "it is linked to 7 queries of width 32, and its queries are 6 of width 32"),
        ({**REIN, "query_dim": 16}, True, "it is linked to 6 queries of width 16"),
    ],
)
def test_queries_without_a_place_and_places_without_queries_are_refused(spec, linked, sentence):
    with pytest.raises(ValueError, match=sentence):
        dense(spec, linked)


def test_a_head_of_classification_takes_none():
    body = backbone("timm_vit")
    with pytest.raises(ValueError, match="Use kind: segmentation with head mask and linked: true"):
        Tuned(body, build(REIN, body), LinearHead(body.dim, 3))
