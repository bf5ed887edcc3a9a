"""ViT-Adapter: its parameters, its three regimes, and the backbones that it takes."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.zoo import TIMM, backbone, image
from vpeft.backbones import Backbone, wrap
from vpeft.backbones.weights import Weights
from vpeft.dense.vit_adapter import ViTAdapter
from vpeft.methods import build
from vpeft.tuned import Tuned


def shake(neck: nn.Module) -> nn.Module:
    """Randomise everything that learns, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return neck


SHAPES = {
    "T": (192, 12, 3, {"heads": 6, "ratio": 1.0}, 2_438_192),
    "S": (384, 12, 6, {"heads": 6, "ratio": 1.0}, 5_830_160),
    "B": (768, 12, 12, {"heads": 12, "ratio": 0.5}, 13_680_608),
    "L": (1024, 24, 16, {"heads": 16, "ratio": 0.5}, 23_236_800),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_those_of_the_reference_and_of_the_docstring(shape):
    d, depth, vit_heads, options, expected = SHAPES[shape]
    with torch.device("meta"):
        model = VisionTransformer(img_size=64, embed_dim=d, depth=depth, num_heads=vit_heads, num_classes=0)
        neck = ViTAdapter(wrap(model, "meta", weights=Weights("given", "", "")), **options)
    h, v, k, i, n, p = options["heads"], int(d * options["ratio"]), d // 4, 64, 4, 4
    injector = 3 * h * 3 * p * (d + 1) + 2 * d * v + v + d + 5 * d
    extractor = 3 * h * p * (d + 1) + 2 * d * v + v + d + 7 * d + 2 * d * k + 11 * k
    formula = 252 * i**2 + 53 * i + 11 * i * d + 4 * d**2 + 16 * d + n * (injector + extractor) + 2 * extractor
    assert count(neck) == formula == expected
    if shape == "B":
        assert (count(neck.spm), count(neck.interactions), count(neck.up)) == (1_579_328, 9_732_768, 2_360_064)


def test_injectors_that_are_zero_leave_the_vit_what_it_was():
    body = backbone("timm_vit")
    plain = copy.deepcopy(body)
    neck = ViTAdapter(body, heads=2, vit_features=False, interactions=2, prefix_tokens=True)
    seen = []
    body.blocks[-1].after(lambda x: seen.append(x) or x)
    with torch.no_grad():
        neck(body, image())
        expected = plain.model.forward_features(image())
    torch.testing.assert_close(body.model.norm(seen[0]), expected, atol=1e-5, rtol=1e-5)
    neck.interactions[0].injector.gamma.data.fill_(0.5)
    with torch.no_grad():
        neck(body, image())
    assert (seen[1] - seen[0]).abs().max() > 0.1


def four(name: str = "timm_vit", **changes) -> Backbone:
    """A plain ViT with four blocks, so that every map gets something of it."""
    torch.manual_seed(0)
    extra = {"reg_tokens": 4, "no_embed_class": True} if name == "timm_registers" else {}
    return wrap(VisionTransformer(**{**TIMM, "depth": 4, **extra, **changes}), name)


def tuned(regime: str, body: Backbone, method: dict | None = None, **options) -> tuple[ViTAdapter, Tuned]:
    torch.manual_seed(1)
    neck = ViTAdapter(body, regime=regime, heads=2, inplanes=8, **options)
    return neck, Tuned(body, build(method, body) if method else [], nn.Identity())


def learns(maps: list[Tensor], parameters: dict[str, nn.Parameter]) -> set[str]:
    loss = sum(((i + 1) * m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for i, m in enumerate(maps))
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name for name, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("prefix_tokens", [False, True])
def test_full_trains_all_of_the_vit_that_the_maps_depend_on(prefix_tokens):
    body = four()
    neck, _ = tuned("full", body, prefix_tokens=prefix_tokens)
    names = neck.adopts(body)
    assert not [name for name, p in body.model.named_parameters() if p.requires_grad]
    body.requires_grad_(True)
    nn.init.ones_(neck.interactions[0].injector.gamma)
    everything = dict(body.model.named_parameters())
    assert set(names) == learns(neck(body, image()), everything)
    assert set(everything) - set(names) == {"norm.weight", "norm.bias"} | (set() if prefix_tokens else {"cls_token"})


def test_injectors_learn_through_a_frozen_vit():
    body = four()
    neck, _ = tuned("injector", body)
    assert neck.adopts(body) == []
    shake(neck)
    parameters = dict(neck.named_parameters())
    assert learns(neck(body, image()), parameters) == set(parameters)
    assert not [p for p in body.parameters() if p.requires_grad]


def test_every_zero_injector_gets_a_gradient_at_the_first_step():
    body = four()
    neck, _ = tuned("injector", body)
    gammas = {name: p for name, p in neck.named_parameters() if name.endswith("gamma")}
    assert learns(neck(body, image()), gammas) == set(gammas)
    assert len(gammas) == 4


def test_extractors_leave_no_graph_in_the_vit():
    body = four()
    neck, _ = tuned("extractor", body)
    body.requires_grad_(True)  # were there a graph, it would be seen
    assert not [name for name, _ in neck.named_parameters() if "injector" in name]
    seen = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x.requires_grad) or x)
    maps = shake(neck)(body, image())
    parameters = dict(neck.named_parameters())
    assert seen == [False] * 4
    assert learns(maps, parameters) == set(parameters)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "name", ["timm_registers", "timm_siglip", "timm_dinov3", "open_clip", "hf_vit", "hf_registers"]
)
@pytest.mark.parametrize("prefix_tokens", [False, True])
def test_any_plain_vit_with_or_without_its_prefix(name, prefix_tokens):
    body = backbone(name)
    prefix = body.blocks[0].prefix
    neck = ViTAdapter(body, heads=2, interactions=2, vit_features=False, prefix_tokens=prefix_tokens).eval()
    lengths = []
    for block in body.blocks:
        block.after(lambda x: lengths.append(x.shape[1]) or x)
    maps = neck(body, image())
    assert lengths == [16 + prefix * prefix_tokens] * 2
    assert [tuple(m.shape) for m in maps] == [(2, 32, 64 // s, 64 // s) for s in neck.strides]
    if prefix and not prefix_tokens:
        assert "cls_token" not in " ".join(neck.adopts(body))


@pytest.mark.parametrize(
    "method", [{"name": "vpt", "prompts": 3}, {"name": "lora", "rank": 2}, {"name": "convpass", "bottleneck": 4}]
)
@pytest.mark.parametrize("prefix_tokens", [False, True])
def test_methods_act_in_the_vit_beside_injectors(method, prefix_tokens):
    body = four("timm_registers")
    neck, model = tuned("injector", body, method, prefix_tokens=prefix_tokens)
    shake(neck)
    shake(model.methods)
    parameters = dict(model.methods.named_parameters())
    assert learns(neck(body, image()), parameters) == set(parameters)


def test_patches_of_fourteen_pixels():
    body = four(img_size=224, patch_size=14, embed_dim=16)
    neck = ViTAdapter(body, heads=2, inplanes=4).eval()
    maps = neck(body, torch.randn(1, 3, 224, 224))
    assert body.grid == (16, 16)
    assert [tuple(m.shape[2:]) for m in maps] == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_maps_that_are_not_square():
    body = four(img_size=(64, 96))
    maps = ViTAdapter(body, heads=2, inplanes=4).eval()(body, torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_final_norm_is_applied_to_what_leaves_the_vit_only():
    body = four()
    neck, _ = tuned("extractor", body, final_norm=True)
    before = [m.detach() for m in neck.eval()(body, image())]
    last = []
    body.blocks[-1].after(lambda x: last.append(x) or x)
    with torch.no_grad():
        body.model.norm.bias.add_(1.0)
        after = neck(body, image())
        last_before = last[0]
        neck(body, image())
    assert all((a - b).abs().max() > 0.01 for a, b in zip(after, before, strict=True))
    assert torch.equal(last_before, last[1])
    assert "norm" in body.family.affines
    tuned("extractor", body)
    assert "norm" not in body.family.affines


# Breaks are Dynamo's, whichever backend; the backward graph of the whole takes long, and is that of its parts.
def test_it_compiles_without_graph_breaks():
    body = four(depth=2)
    neck, _ = tuned("injector", body, interactions=2, vit_features=False, extra_extractors=0)
    neck.eval()
    with torch.no_grad():
        expected = neck(body, image())
        maps = torch.compile(lambda x: neck(body, x), fullgraph=True, backend="eager")(image())
    for m, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(m, reference, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_holds_the_statistics_of_every_batch_norm():
    body = four()
    neck, _ = tuned("injector", body)
    neck.train()(body, image())
    buffers = [key for key in neck.state_dict() if key.endswith("running_mean")]
    assert len(buffers) == 6 + 4
    other, _ = tuned("injector", four())
    other.load_state_dict(neck.state_dict())
    body_of_other = four()
    ViTAdapter(body_of_other, heads=2)  # drops the class token
    for m, n in zip(neck.eval()(body, image()), other.eval()(body_of_other, image()), strict=True):
        assert torch.equal(m, n)


def test_batch_norms_become_synchronised_ones():
    neck = nn.SyncBatchNorm.convert_sync_batchnorm(ViTAdapter(four(), heads=2))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in neck.modules()) == 10


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"img_size": 48}, {}, r"48 is not a multiple of 32, .* multiples of 32: set image_size to 32 or 64\."),
        ({"img_size": 112, "patch_size": 14}, {}, r"112 is not .* multiples of 224: set image_size to 224\."),
        ({}, {"interactions": 3}, "there are 3 interactions. Make it 4, or set vit_features to false"),
        ({}, {"interactions": 5, "vit_features": False}, "interactions is 5, and timm_vit has 4 blocks"),
        ({}, {"heads": 5}, "cannot have 5 heads"),
    ],
)
def test_what_does_not_fit_is_refused(changes, options, words):
    with pytest.raises(ValueError, match=words):
        ViTAdapter(four(**changes), **options)


def test_windows_are_refused():
    with pytest.raises(ValueError, match=r"timm_swin attends within windows\. Use the neck 'stages'"):
        ViTAdapter(backbone("timm_swin"), interactions=2, vit_features=False)
