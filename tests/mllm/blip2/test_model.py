"""The first stage equals LAVIS's: losses, what leads to them, every gradient, and how many parameters there are."""

import pytest
import torch

from mllm import qformer_names
from mllm.blip2 import model
from mllm.blip2.losses import similarity, weights
from mllm.blip2.model import FirstStage, Pairs
from mllm.qformer import QFormer
from tests.mllm import parity
from tests.mllm.blip2.stages import SIZES, drawn, lavis, official, pairs

# A constant added to all scores of a row cancels in the softmax.
NOISE = [f"layers.{i}.attention.k.bias" for i in range(4)] + [f"layers.{i}.cross.k.bias" for i in (0, 2)]
ROUNDING = [qformer_names.lavis(name) for name in NOISE]


def choose(monkeypatch, g, kind=""):
    """Let the file's negatives be drawn."""
    order = drawn(g, kind)
    monkeypatch.setattr(model, "negatives", lambda *_: next(order))


@pytest.mark.parametrize(("gather_grad", "kind"), [(False, "grad"), (True, "grad_attached")])
def test_losses_and_gradients_equal_the_official_code(monkeypatch, gather_grad, kind):
    stage, g = official(gather_grad=gather_grad)
    choose(monkeypatch, g)
    batch = pairs(g)
    image = batch.features.requires_grad_()
    losses = stage(batch)
    parity.hold_outputs(g, {"loss_itc": losses["itc"], "loss_itm": losses["itm"], "loss_lm": losses["itg"]})
    parity.backward(g | {"cotangent/loss": g["cotangent"]}, {"loss": torch.stack(list(losses.values())).sum()})
    found = parity.gradients(stage, lavis) | {"input.image_tokens": image.grad}
    others = {f"grad/{name.removeprefix(f'{kind}/')}": t for name, t in g.items() if name.startswith(f"{kind}/")}
    parity.hold_gradients(others, found, rounding=ROUNDING)


def test_pairs_of_one_image_share_targets_and_are_no_negatives_as_in_the_official_code(monkeypatch):
    stage, g = official()
    choose(monkeypatch, g, "_ids")
    losses = stage(pairs(g, g["input/image_id"]))
    wanted = {f"loss_{name}_image_id": losses[ours] for name, ours in zip(("itc", "itm", "lm"), losses, strict=True)}
    parity.hold_outputs(g, wanted)


def test_captions_that_say_one_thing_count_as_one_image_does(monkeypatch):
    stage, g = official()
    choose(monkeypatch, g, "_ids")
    batch = pairs(g)
    losses = stage(batch._replace(caption=g["input/image_id"]))
    parity.hold_outputs(g, {"loss_itc_image_id": losses["itc"], "loss_itm_image_id": losses["itm"]})


def test_what_leads_to_the_losses_equals_the_official_code():
    stage, g = official()
    batch = pairs(g)
    seen = stage.norm(batch.features)
    queries, past = stage.qformer(seen)
    hidden, _ = stage.qformer(None, batch.text_ids, batch.text_mask)
    parity.hold_outputs(g, {"vision_proj": stage.image_proj(queries), "text_proj": stage.text_proj(hidden[:, 0])})
    image, text = stage.compared_images(queries), stage.compared_texts(batch.text_ids, batch.text_mask)
    scores = similarity(image, text) / stage.temperature
    for kind, ids in (("", torch.arange(4)), ("_image_id", g["input/image_id"])):
        same = ids[:, None] == ids[None]
        found = {f"weights_i2t{kind}": weights(scores, same), f"weights_t2i{kind}": weights(scores.T, same)}
        parity.hold_outputs(g, found)
    triplets = stage.triplets(seen, batch, *drawn(g))
    queries, _ = stage.qformer(*triplets)
    assert stage.itm_head is not None
    parity.hold_outputs(g, {"itm_token_logits": stage.itm_head(queries[:, :4])})
    torch.testing.assert_close(stage.matched(*triplets), g["output/itm_token_logits"].mean(dim=1), atol=1e-5, rtol=1e-5)
    logits, labels = stage.written(past, batch.text_ids, batch.text_mask)
    told = batch.text_mask[:, 1:].bool()
    torch.testing.assert_close(logits, g["output/lm_logits"][:, :-1][told], atol=1e-5, rtol=1e-5)
    assert torch.equal(labels, batch.text_ids[:, 1:][told])


def test_parameters_are_as_many_as_in_blip2():
    with torch.device("meta"):
        stage = FirstStage(QFormer(32, 1408, vocab=30523), 1408)
    assert sum(p.numel() for p in stage.parameters()) == 186_705_470


def small(**options):
    torch.manual_seed(0)
    return FirstStage(QFormer(4, 20, **SIZES, vocab=31, positions=12), 20, embed=14, **options)


def batch(count=5):
    generator = torch.Generator().manual_seed(1)
    ids, number = torch.randint(1, 30, (count, 6), generator=generator), torch.arange(count)
    return Pairs(torch.randn(count, 9, 20, generator=generator), ids, torch.ones_like(ids), number, number)


@pytest.mark.parametrize("terms", [("itc",), ("itc", "itm"), ("itc", "itg"), ("itc", "itm", "itg")])
def test_what_is_built_is_what_the_losses_need(terms):
    stage = small(terms=terms)
    losses = stage(batch())
    assert tuple(losses) == terms
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in stage.named_parameters() if p.grad is None]


def test_the_temperature_is_learned_from_where_it_begins():
    stage = small(temperature=0.2)
    assert stage.temperature.item() == pytest.approx(0.2)
    stage(batch())["itc"].backward()
    assert stage.temperature.grad


def test_negatives_are_drawn_from_the_generator():
    stage = small().eval()
    losses = [stage(batch(), torch.Generator().manual_seed(seed))["itm"].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_padding_of_captions_changes_nothing():
    stage = small().eval()
    pairs = batch()
    padded = pairs._replace(
        text_ids=torch.nn.functional.pad(pairs.text_ids, (0, 3)),
        text_mask=torch.nn.functional.pad(pairs.text_mask, (0, 3)),
    )
    one, two = (stage(x, torch.Generator().manual_seed(0)) for x in (pairs, padded))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)


def test_losses_are_float32_under_autocast():
    stage = small().eval()
    exact = stage(batch(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        losses = stage(batch(), torch.Generator().manual_seed(0))
    torch.stack(list(losses.values())).sum().backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], atol=0.05, rtol=0)


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="A batch of 1 pairs leaves no negative"):
        small()(batch(1))


def test_a_qformer_without_words_is_refused():
    with pytest.raises(ValueError, match=r"reads captions, and this Q-Former reads no text; build it with a vocab\."):
        FirstStage(QFormer(4, 20, **SIZES), 20)
