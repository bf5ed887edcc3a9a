"""The official order of padding and shifting in a timm Swin: `+pad_first` after its name."""

import copy

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock

from tests.zoo import backbone, image
from vpeft.backbones import Backbone, create, wrap
from vpeft.backbones.create import local_weights
from vpeft.backbones.timm_swin import PadFirst, pad_first
from vpeft.methods import build
from vpeft.tuned import Tuned


def pair(side: int, window: int) -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    theirs = SwinTransformer(
        img_size=side, window_size=window, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=0
    )
    ours = copy.deepcopy(theirs)
    pad_first(ours)
    return wrap(ours, "ours"), wrap(theirs, "theirs")


@pytest.mark.parametrize(("side", "window", "same"), [(64, 4, True), (56, 4, False)])
def test_the_orders_differ_only_where_a_map_is_padded(side, window, same):
    ours, theirs = pair(side, window)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-6) is same


def test_a_window_as_large_as_the_map_still_shifts():
    ours, theirs = pair(32, 4)
    assert [block.module.shift_size for block in ours.blocks] == [(0, 0), (2, 2), (0, 0), (2, 2)]
    assert [block.module.shift_size for block in theirs.blocks] == [(0, 0), (2, 2), (0, 0), (0, 0)]


def test_the_end_of_a_name_chooses_the_order_and_no_other_weights(monkeypatch, tmp_path):
    name = "swin_tiny_patch4_window7_224"
    body = create(f"{name}+pad_first", "none", image_size=128)
    assert body.name == f"{name}+pad_first"
    assert all(type(block.module) is PadFirst for block in body.blocks)
    assert {block.module.window_size for block in body.blocks} == {(7, 7)}, "no window shrinks to the 4 x 4 map"
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / f"{name}.pth"
    file.touch()
    assert local_weights(f"{name}+pad_first") == local_weights(name) == file


def test_a_plain_vit_has_no_such_order():
    with pytest.raises(ValueError, match=r"\+pad_first is for timm's SwinTransformer.* this is a VisionTransformer"):
        create("vit_tiny_patch16_224+pad_first", "none")


def test_prompts_attend_in_windows_of_the_padded_map():
    ours, theirs = pair(56, 4)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        plain = ours(images)
    outs = []
    for body in (ours, theirs):
        torch.manual_seed(1)
        tuned = Tuned(body, build({"name": "vpt", "prompts": 2}, body), torch.nn.Identity()).eval()
        with torch.no_grad():
            outs.append(tuned(images))
    assert not torch.allclose(outs[0], plain, atol=1e-4)
    assert not torch.allclose(*outs, atol=1e-4)


def test_a_backbone_whose_last_norm_is_not_read_offers_it_to_no_method():
    body = backbone("timm_swin")
    body.skip_norm()
    for spec in ({"name": "full"}, {"name": "bitfit"}, {"name": "layernorm"}, {"name": "partial"}):
        (method,) = build(spec, body)
        adopted = method.adopts(body)
        assert adopted
        assert not [name for name in adopted if name.startswith("norm.")]
    ssf, plain = (build({"name": "ssf"}, one)[0] for one in (body, backbone("timm_swin")))
    assert len(list(plain.parameters())) - len(list(ssf.parameters())) == 2
    assert torch.isfinite(body(image())).all()
    assert all(type(block.module) is SwinTransformerBlock for block in body.blocks)
