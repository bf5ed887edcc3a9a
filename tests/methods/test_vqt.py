"""VQT equals its official code, and the image's own path stays what it was."""

import pytest
import torch
from torch import nn

from tests.golden import backbone, golden, images
from tests.zoo import backbone as tiny
from tests.zoo import image, shake, tuned
from vpeft.methods import build
from vpeft.tuned import Tuned


@pytest.mark.parametrize(("file", "weighted"), [("cls_vqt", False), ("cls_vqt_weighted", True)])
def test_features_queries_and_gradients_equal_the_official_code(file, weighted):
    g, body = golden(file), backbone()
    (vqt,) = build({"name": "vqt", "queries": 2, "weighted": weighted}, body)
    names = {"queries": "query", "combine": "combine"}
    mine = {ours: theirs for ours, theirs in names.items() if weighted or ours == "queries"}
    vqt.load_state_dict({ours: g[f"method/{theirs}"] for ours, theirs in mine.items()})
    seen = []
    for index, block in enumerate(body.blocks):
        block.after(lambda x, index=index: seen.append((index, x)) or x)
    model = Tuned(body, [vqt], nn.Identity()).eval()

    features = model(images())
    (features * g["cotangent"]).sum().backward()

    torch.testing.assert_close(features, g["output/features"], atol=1e-5, rtol=1e-5)
    for index, tokens in seen:  # theirs begin with the two query tokens
        torch.testing.assert_close(tokens[:1], g[f"output/tokens_block{index}"][:, 2:], atol=5e-5, rtol=1e-5)
    for ours, theirs in mine.items():
        gradient, wanted = getattr(vqt, ours).grad, g[f"grad/{theirs}"]
        assert (gradient - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", ["timm_vit", "timm_registers", "timm_siglip", "open_clip", "hf_dinov2", "hf_clip"])
def test_a_query_equals_a_token_of_a_longer_sequence_whose_keys_nobody_reads(name):
    """A query that repeats a token of the sequence leaves the block as that token does."""
    body = tiny(name)
    block = body.blocks[1]
    x = body.blocks[0](body.embed(image())).detach()
    torch.testing.assert_close(block.query(x[:, :2], *block.keys_values(x)), block(x)[:, :2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov3", "open_clip", "hf_registers"])
def test_what_is_kept_of_an_image_gives_the_same_features(name):
    model = shake(tuned(name, "vqt"))
    (vqt,) = model.methods
    kept = vqt.frozen(model.backbone, image())
    assert not any(part.requires_grad for part in kept)
    torch.testing.assert_close(vqt.features(*kept), model.backbone(image()), atol=1e-6, rtol=1e-6)


def test_a_wrong_number_of_queries_is_refused():
    with pytest.raises(ValueError, match="vqt: queries is 0; at least 1"):
        build({"name": "vqt", "queries": 0}, tiny("timm_vit"))
