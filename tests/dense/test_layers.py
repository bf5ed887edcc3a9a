"""The necks `layers` and `last`: maps of a plain ViT after chosen blocks."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.zoo import TIMM, backbone, image
from vpeft.backbones import Backbone, wrap
from vpeft.dense.layers import Last, Layers
from vpeft.dense.necks import NECKS
from vpeft.methods import build
from vpeft.tuned import Tuned


def deep(**changes) -> Backbone:
    torch.manual_seed(0)
    return wrap(VisionTransformer(**{**TIMM, "depth": 4, "reg_tokens": 2, **changes}), "deep")


def native(body: Backbone, **options) -> list[Tensor]:
    return body.model.forward_intermediates(image(), intermediates_only=True, output_fmt="NCHW", **options)


@pytest.mark.parametrize("final_norm", [False, True])
def test_maps_are_those_that_timm_gives(final_norm):
    body = deep()
    neck = Layers(body, [0, 2], final_norm=final_norm)
    assert (neck.channels, neck.strides) == ([32, 32], [16, 16])
    for ours, theirs in zip(neck(body, image()), native(body, indices=[0, 2], norm=final_norm), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_four_blocks_evenly_spaced_unless_given():
    body = deep(depth=12)
    neck = Layers(body)
    assert neck.layers == (2, 5, 8, 11)
    assert len(neck(body, image())) == 4


def test_blocks_after_the_last_map_do_not_run():
    body, ran = deep(), []
    body.blocks[2].after(lambda x: ran.append(2) or x)
    Layers(body, [0, 1])(body, image())
    assert not ran


def test_methods_count_and_learn_in_the_blocks_that_run_only():
    body = deep()
    neck = Layers(body, [0, 1])
    model = Tuned(body, build([{"name": "lora", "rank": 2}, {"name": "partial"}], body), nn.Identity(), neck=neck)
    assert len(list(model.methods[0].parameters())) == 2 * 4
    assert {name.split(".")[1] for name in model.adopted} == {"1"}
    assert max(model.levels()[id(p)] for name, p in body.model.named_parameters() if name in model.adopted) == 2


def test_pyramid_is_feature2pyramid():
    body = deep()
    neck = Layers(body, rescale="pyramid").eval()
    nn.init.normal_(neck.rescale.up4[1].running_mean)
    a, b, c, d = native(body, indices=4)
    maps = neck(body, image())
    assert neck.strides == [4, 8, 16, 32]
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    first, norm, act, second = neck.rescale.up4
    torch.testing.assert_close(maps[0], second(act(norm(first(a)))))
    torch.testing.assert_close(maps[1], F.conv_transpose2d(b, neck.rescale.up2.weight, neck.rescale.up2.bias, stride=2))
    torch.testing.assert_close(maps[2], c)
    torch.testing.assert_close(maps[3], F.max_pool2d(d, 2, 2))
    assert sum(p.numel() for p in neck.parameters()) == 12 * 32**2 + 5 * 32


def test_bilinear_resizes_each_map_and_learns_nothing():
    body = deep()
    neck = Layers(body, rescale="bilinear")
    assert (neck.channels, neck.strides, list(neck.parameters())) == ([32] * 4, [4, 8, 16, 32], [])
    maps = neck(body, image())
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    for ours, theirs in zip(maps, native(body, indices=4), strict=True):
        side = ours.shape[-1]
        torch.testing.assert_close(ours, F.interpolate(theirs, (side, side), mode="bilinear", align_corners=False))


def test_multilevel_is_the_neck_of_that_name():
    body = deep()
    neck = Layers(body, rescale="multilevel", width=8).eval()
    assert (neck.channels, neck.strides) == ([8] * 4, [4, 8, 16, 32])
    theirs = native(body, indices=4)
    for i, (m, scale) in enumerate(zip(neck(body, image()), (4, 2, 1, 0.5), strict=True)):
        x = F.interpolate(neck.rescale.lateral_convs[i](theirs[i]), scale_factor=scale, mode="bilinear")
        torch.testing.assert_close(m, neck.rescale.convs[i](x))
    assert sum(p.numel() for p in neck.parameters()) == 4 * (32 * 8 + 8 + 9 * 8**2 + 8)


def test_last_is_the_normalised_patches():
    body = deep()
    neck = Last(body)
    (m,) = neck(body, image())
    torch.testing.assert_close(m, native(body, indices=1, norm=True)[0])
    assert (neck.channels, neck.strides, list(neck.parameters())) == ([32], [16], [])


def test_last_reads_the_norm_that_a_pooling_model_keeps_for_its_head():
    body = deep(class_token=False, reg_tokens=0, global_pool="avg")
    (m,) = Last(body)(body, image())
    torch.testing.assert_close(m.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("neck", [Last, Layers])
def test_prompts_stay_out_of_the_maps_and_act(neck):
    body = deep()
    built = neck(body)
    plain = built(body, image())[-1]
    model = Tuned(body, build({"name": "vpt", "prompts": 3}, body), nn.Identity())
    (*_, m) = built(body, image())
    assert m.shape == plain.shape
    assert (m - plain).abs().max() > 1e-4
    m.square().sum().backward()
    assert all(p.grad is not None for p in model.methods.parameters())


@pytest.mark.parametrize("name", ["timm_dinov3", "open_clip", "hf_dinov2", "hf_clip"])
def test_any_plain_vit(name):
    body = backbone(name)
    maps = [*Layers(body, [0, 1], final_norm=True)(body, image()), *Last(body)(body, image())]
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 3
    torch.testing.assert_close(maps[1], maps[2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [4]}, "there is no block 4 in deep, which has 4"),
        ({"layers": [2, 1]}, r"\[2, 1\] are not blocks in rising order"),
        ({"layers": [-1]}, r"\[-1\] are not blocks"),
        ({"layers": []}, r"\[\] are not blocks"),
        ({"layers": [0, 1], "rescale": "pyramid"}, r"pyramid makes four maps of four, and 2 layers are given"),
        ({"width": 8}, "width is that of rescale multilevel, and rescale is none"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Layers(deep(), **options)


@pytest.mark.parametrize("name", ["layers", "last"])
def test_windows_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} needs a plain ViT, and timm_swin attends within windows\. Use"):
        NECKS[name](backbone("timm_swin"))


@pytest.mark.parametrize("name", NECKS)
def test_every_neck_says_what_it_hands_on(name):
    body = backbone("timm_swin") if name == "stages" else deep(embed_dim=48)
    neck = NECKS[name](body)
    maps = neck(body, image())
    assert [m.shape[1] for m in maps] == neck.channels
    assert [64 // m.shape[-1] for m in maps] == neck.strides
