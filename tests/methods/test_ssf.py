"""SSF inside Swin equals the official code; its merging has a place for every shift, or says that it has none."""

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.golden import backbone as golden_vit
from tests.golden import golden, images, swin_backbone
from tests.methods.test_parity import ssf as official
from tests.zoo import TIMM, backbone, image
from vpeft.backbones import Backbone, wrap
from vpeft.methods import build
from vpeft.methods.ssf import SSF, ScaleShift
from vpeft.tuned import Tuned


def swin() -> Backbone:
    return swin_backbone("swin_base", 16, (2, 1), (2, 4))


def official_swin(g: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    inside = [
        "{}.ssf_{}_1",
        "{}.attn.ssf_{}_1",
        "{}.attn.ssf_{}_2",
        "{}.ssf_{}_2",
        "{}.mlp.ssf_{}_1",
        "{}.mlp.ssf_{}_2",
    ]
    places = ["patch_embed.ssf_{}_1", "patch_embed.ssf_{}_2", "ssf_{}_1"]
    for block in ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"):
        places += [place.replace("{}", block, 1) for place in inside]
    names = {"gamma": "scale", "beta": "shift"}
    return {f"pairs.{i}.{our}": g[f"{part}/{p.format(names[our])}"] for i, p in enumerate(places) for our in names}


def attached(body: Backbone, **options: object) -> tuple[SSF, Tuned]:
    (method,) = build({"name": "ssf", **options}, body)
    assert isinstance(method, SSF)
    return method, Tuned(body, [method], nn.Identity()).eval()


def test_inside_swin_tokens_features_and_gradients_equal_the_official_code():
    g, body = golden("swin_ssf"), swin()
    torch.testing.assert_close(body(images(64)), g["output/plain_features"], atol=1e-5, rtol=1e-5)
    method, tuned = attached(body)
    method.load_state_dict(official_swin(g, "method"))
    seen: list[Tensor] = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)

    features = tuned(images(64))
    (features * g["cotangent"]).sum().backward()

    torch.testing.assert_close(features, g["output/features"], atol=1e-5, rtol=1e-5)
    names = [name for name in sorted(g) if name.startswith("output/tokens_")]
    for name, tokens in zip(names, seen, strict=True):
        torch.testing.assert_close(tokens[:1].flatten(1, 2), g[name], atol=5e-5, rtol=1e-5)
    gradients = official_swin(g, "grad")
    assert {name for name, _ in method.named_parameters()} == set(gradients)
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-4, (name, difference)


def test_merged_features_equal_the_golden_ones():
    g, body = golden("cls_ssf"), golden_vit()
    method, tuned = attached(body)
    method.load_state_dict(official(g, "method"))
    plain = golden_vit()
    plain.model.load_state_dict(tuned.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(images()), g["output/features_merged"], atol=1e-5, rtol=1e-5)


def test_output_and_its_gradients_equal_the_plain_equation():
    torch.manual_seed(0)
    pair, plain = ScaleShift(6, 0.5), ScaleShift(6, 0.5)
    plain.load_state_dict(pair.state_dict())
    y = torch.randn(2, 3, 4, 6, dtype=torch.float32)
    ours, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    out, wanted = pair.output(ours, ours), plain.gamma * theirs + plain.beta
    torch.testing.assert_close(out, wanted)
    out.square().sum().backward()
    wanted.square().sum().backward()
    for a, b in ((ours, theirs), (pair.gamma, plain.gamma), (pair.beta, plain.beta)):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_gamma_starts_around_one_and_beta_around_zero():
    torch.manual_seed(0)
    method, _ = attached(backbone("timm_vit"))
    gamma = torch.cat([pair.gamma for pair in method.pairs]).detach()
    beta = torch.cat([pair.beta for pair in method.pairs]).detach()
    assert abs(gamma.mean() - 1) < 0.005
    assert abs(beta.mean()) < 0.005
    assert 0.015 < gamma.std() < 0.025
    assert 0.015 < beta.std() < 0.025


def test_patch_merging_adds_the_pairs_that_the_official_swin_lacks_and_merges():
    def swin_and_method() -> tuple[Backbone, SSF, Tuned]:
        body = backbone("timm_swin")
        return body, *attached(body, patch_merging=True, init_std=0.3)

    body, method, tuned = swin_and_method()
    plain, _ = attached(backbone("timm_swin"))
    sizes = [len(pair.gamma) for pair in method.pairs]
    assert len(sizes) == len(plain.pairs) + 1
    assert 4 * 32 in sizes
    merged = backbone("timm_swin")
    merged.model.load_state_dict(tuned.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(merged(image()), body(image()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"pre_norm": True, "no_embed_class": True, "reg_tokens": 2}])
def test_the_shift_of_a_patch_embedding_without_bias_merges_into_the_position_embedding(options):
    torch.manual_seed(0)
    model = VisionTransformer(**TIMM, **options)
    state = model.state_dict()
    body = wrap(model, "clip")
    assert body.family.affines["patch_embed"].owner.bias is None
    _, tuned = attached(body, init_std=0.3)
    twin = VisionTransformer(**TIMM, **options)
    twin.load_state_dict({**state, **tuned.merge()}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(wrap(twin, "clip")(image()), body(image()), rtol=1e-4, atol=1e-5)


def test_a_qkv_without_bias_refuses_to_merge():
    body = wrap(VisionTransformer(**TIMM, qkv_bias=False), "vit")
    _, tuned = attached(body)
    with pytest.raises(ValueError, match="adds a bias to a Linear that has none"):
        tuned.merge()


def test_what_ssf_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^ssf: init_std is -0.1; 0 or more"):
        build({"name": "ssf", "init_std": -0.1}, backbone("timm_vit"))
    with pytest.raises(ValueError, match=r"^ssf: patch_merging is true, but timm_vit merges no patches"):
        build({"name": "ssf", "patch_merging": True}, backbone("timm_vit"))
    apart = wrap(Eva(**TIMM), "eva")
    for name in ("ssf", "ia3"):
        with pytest.raises(ValueError, match=rf"^{name}: eva reads its fused qkv as a tensor"):
            build({"name": name}, apart)
