"""Rein equals the official modules; only patches are refined; its tokens become queries."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.counts import SHAPES
from tests.golden import golden
from tests.zoo import backbone, image, shake, tuned
from vpeft.backbones import Backbone, wrap
from vpeft.backbones.weights import Weights
from vpeft.methods import build
from vpeft.methods.rein import Refine, Rein
from vpeft.seams import Block, Branch

NAMES = {
    "scale": "scale",
    **{
        f"{ours}.{leaf}": f"{theirs}.{leaf}"
        for ours, theirs in {
            "token_to_feature": "mlp_token2feat",
            "delta": "mlp_delta_f",
            "transform": "transform",
            "merge_queries": "merge",
        }.items()
        for leaf in ("weight", "bias")
    },
}
TOKENS = {
    "rein": {"factors.0": "learnable_tokens"},
    "lorarein": {"factors.0": "learnable_tokens_a", "factors.1": "learnable_tokens_b"},
}


def golden_body() -> Backbone:
    """Of the shape of the golden file: three blocks of width 32."""
    return wrap(
        VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=0), "rein"
    )


def tensors(g: dict[str, Tensor], part: str, which: str) -> dict[str, Tensor]:
    names = NAMES | TOKENS[which]
    return {ours: torch.atleast_1d(g[f"{part}/{which}.{theirs}"]) for ours, theirs in names.items()}


def block(prefix: int) -> Block:
    branch = Branch(nn.Identity(), nn.Identity())
    return Block(nn.Identity(), branch, branch, {}, 32, (3, 4), prefix)


def test_refined_features_queries_and_gradients_equal_the_official_code():
    g = golden("mod_rein")
    x = g["input/feats"].requires_grad_()
    loss, models = torch.zeros(()), {}
    for which, rank in {"rein": None, "lorarein": 4}.items():
        models[which] = rein = Rein(golden_body(), tokens=7, rank=rank, query_dim=16)
        rein.load_state_dict(tensors(g, "method", which))
        found = {f"{which}_layer{i}": Refine(rein, i, block(1))(x) for i in (0, 2)}
        found[f"{which}_queries"] = rein.queries()
        for name, output in found.items():
            torch.testing.assert_close(output, g[f"output/{name}"], atol=1e-5, rtol=1e-5)
            loss = loss + (output * g[f"cotangent/{name}"]).sum()
    loss.backward()
    gradients = {f"{which}.{name}": p.grad for which, rein in models.items() for name, p in rein.named_parameters()}
    expected = {f"{w}.{name}": one for w in models for name, one in tensors(g, "grad", w).items()}
    gradients["x"], expected["x"] = x.grad, g["grad/input.feats"]
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


def test_the_published_count_is_reached_on_vit_l():
    with torch.device("meta"):
        model = VisionTransformer(embed_dim=1024, depth=24, num_heads=16, num_classes=0)
        large = wrap(model, "vit_large", weights=Weights("random", "without values", ""))
        counts = [sum(p.numel() for p in Rein(large, query_dim=dim).parameters()) for dim in (None, 256)]
    assert counts == [2_530_817, 2_990_081]
    assert all(f"{count:,}" in (Rein.__doc__ or "") for count in counts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_queries_add_what_the_docstring_says(shape):
    sizes = {"img_size": shape.side, "patch_size": shape.patch, "embed_dim": shape.dim, "depth": shape.depth}
    body = wrap(VisionTransformer(**sizes, num_heads=2, num_classes=0), "small")
    with_queries, without = (sum(p.numel() for p in Rein(body, query_dim=q).parameters()) for q in (10, None))
    assert with_queries - without == 10 * (shape.dim + 1) + 10 * (3 * 10 + 1)


@pytest.mark.parametrize("name", ["timm_registers", "hf_registers", "open_clip"])
def test_after_every_block_the_patches_change_and_nothing_before_them(name):
    model = tuned(name, "rein")
    with torch.no_grad():
        model.methods[0].scale.fill_(1.0)
    for at, one in enumerate(model.backbone.blocks):
        x = torch.randn(2, one.prefix + one.grid[0] * one.grid[1], one.dim)
        (edit,) = one._after
        y = edit(x)
        assert torch.equal(y[:, : one.prefix], x[:, : one.prefix])
        assert ((y - x)[:, one.prefix :].abs().amax(-1) > 1e-3).all()
        torch.testing.assert_close(y[:, one.prefix :], model.methods[0].refine(at, x[:, one.prefix :]))


def test_the_first_token_takes_attention_and_brings_nothing():
    torch.manual_seed(0)
    rein = Rein(golden_body(), tokens=3, rank=None, scale=1.0)
    f = torch.rand(2, 5, 32)
    with torch.no_grad():
        alone = f + rein.delta(f)
        rein.factors[0][0, 0] = 1000.0  # what all patches look at
        torch.testing.assert_close(rein.refine(0, f), alone)
        rein.factors[0][0, 0] = -1000.0
        assert (rein.refine(0, f) - alone).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("rank", [None, 16])
def test_it_starts_as_the_official_code_does(rank):
    torch.manual_seed(0)
    rein = Rein(golden_body(), rank=rank)
    width = 32 if rank is None else (32 * 16) ** 0.5
    bound = (6 / (3 * 16**2 + width)) ** 0.5
    for factor in rein.factors:
        assert 0.95 * bound < factor.abs().max() <= bound
    assert rein.scale.item() == pytest.approx(1e-3)
    assert 0.95 * 32**-0.5 < rein.delta.weight.abs().max() <= 32**-0.5
    assert rein.delta.bias.any()


@pytest.mark.parametrize("order", [("vpt_deep", "rein"), ("rein", "vpt_deep")])
def test_prompts_of_another_method_are_left_as_they_are(order):
    model = shake(tuned("timm_vit", *order), 0.05)
    (rein,) = (method for method in model.methods if isinstance(method, Rein))
    seen: list[tuple[int, ...]] = []
    refine = rein.refine
    rein.refine = lambda index, f: (seen.append(tuple(f.shape)), refine(index, f))[1]
    model(image())
    assert seen == [(2, 4, 4, 32)] * 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 1}, "^rein: tokens is 1; at least 2 are needed"),
        ({"rank": 0}, "^rein: rank is 0 and query_dim is None; each is at least 1"),
        ({"query_dim": 0}, "^rein: rank is 16 and query_dim is 0; each is at least 1"),
    ],
)
def test_what_rein_cannot_be_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build({"name": "rein", **options}, backbone("timm_vit"))
