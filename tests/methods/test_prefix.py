"""Prefix tuning equals attention over longer keys and values, in every library."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import PLAIN, backbone, image, shake, tuned
from vpeft.methods import build
from vpeft.tuned import Tuned


def longer(cross, x: Tensor, keys: Tensor, values: Tensor, heads: int) -> list[Tensor]:
    """The context of x with learned keys and values before it."""
    more = [p.unflatten(-1, (heads, -1)).transpose(0, 1).expand(len(x), -1, -1, -1) for p in (keys, values)]
    return [torch.cat(pair, dim=2) for pair in zip(more, cross.context(x), strict=True)]


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("timm_dinov3", "timm_registers")])
def test_every_token_attends_to_the_prefixes_too(name):
    body, plain = backbone(name), backbone(name)
    (prefix,) = build({"name": "prefix", "prefixes": 3}, body)
    shake(Tuned(body, [prefix], nn.Identity()), 0.5)
    x = plain.embed(image())
    block, mine = plain.blocks[0], body.blocks[0]
    seen = []
    mine.attn.edit(lambda x, h, y: seen.append((h, y)) or y)
    mine(x)
    ((h, y),) = seen
    kv = longer(block.cross, h, prefix.layers[0].keys, prefix.layers[0].values, block.heads)
    wanted = block.cross.read(h, *kv)
    if name == "hf_dinov2" or name == "hf_registers":
        wanted = block.rest.scale1(wanted)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)


def test_learned_keys_are_normalised_like_others_where_keys_are():
    body, plain = backbone("timm_registers"), backbone("timm_registers")
    (prefix,) = build({"name": "prefix", "prefixes": 3}, body)
    shake(Tuned(body, [prefix], nn.Identity()), 0.5)
    block, h = plain.model.blocks[0], torch.randn(2, 21, 32)
    keys = block.attn.k_norm(prefix.layers[0].keys.unflatten(-1, (2, 16))).flatten(-2)
    kv = longer(plain.blocks[0].cross, h, keys, prefix.layers[0].values, 2)
    torch.testing.assert_close(body.model.blocks[0].attn(h), plain.blocks[0].cross.read(h, *kv))


def test_learned_keys_are_not_rotated():
    body, plain = backbone("timm_dinov3"), backbone("timm_dinov3")
    (prefix,) = build({"name": "prefix", "prefixes": 3}, body)
    shake(Tuned(body, [prefix], nn.Identity()), 0.5)
    x = plain.embed(image())
    body.embed(image())
    attn, table = plain.model.blocks[0].attn, plain.family.rotary
    h = plain.model.blocks[0].norm1(x)
    # As tokens in front of the sequence, the keys and values of which are read off a longer input.
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    q = plain.blocks[0].cross._project(h, 0)
    turned = apply_rot_embed_cat(q[:, :, 5:], table, half=attn.rotate_half)
    q = torch.cat([q[:, :, :5], turned], dim=2)
    k, v = longer(plain.blocks[0].cross, h, prefix.layers[0].keys, prefix.layers[0].values, 2)
    wanted = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(body.model.blocks[0].attn(h, rope=table), wanted, atol=1e-5, rtol=1e-4)


def test_prefixes_join_every_window_without_position_or_mask():
    body, plain = backbone("timm_swin"), backbone("timm_swin")
    (prefix,) = build({"name": "prefix", "prefixes": 3}, body)
    shake(Tuned(body, [prefix], nn.Identity()), 0.5)
    attn = plain.model.layers[0].blocks[1].attn  # the shifted one
    mask = plain.model.layers[0].blocks[1].attn_mask
    x = torch.randn(2 * len(mask), 16, 32)
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    layer = prefix.layers[1]
    more = [p.unflatten(-1, (2, 16)).transpose(0, 1).expand(len(x), -1, -1, -1) for p in (layer.keys, layer.values)]
    k, v = torch.cat([more[0], k], dim=2), torch.cat([more[1], v], dim=2)
    bias = attn._get_rel_pos_bias() + mask.repeat(2, 1, 1).unsqueeze(1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=F.pad(bias, (3, 0)))
    wanted = attn.proj(y.transpose(1, 2).flatten(2))
    mine = body.model.layers[0].blocks[1].attn(x, mask=mask)
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov3", "timm_swin", "open_clip", "hf_clip"])
def test_two_prefixes_are_one_with_the_keys_of_both(name):
    def model(*counts):
        body = backbone(name)
        methods = build([{"name": "prefix", "prefixes": count} for count in counts], body)
        return Tuned(body, methods, nn.Identity()).eval()

    both, one = model(2, 3), model(5)
    with torch.no_grad():
        first, second = both.methods
        for mine, a, b in zip(one.methods[0].layers, first.layers, second.layers, strict=True):
            mine.keys.copy_(torch.cat([a.keys, b.keys]))
            mine.values.copy_(torch.cat([a.values, b.values]))
        torch.testing.assert_close(both(image()), one(image()))


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "open_clip", "hf_clip"])
@pytest.mark.parametrize("other", ["vpt_deep", "lora_qv", "adaptformer", "vqt", "dtl", "lst"])
def test_prefixes_stack_with_others_in_any_order(name, other):
    if (name, other) == ("timm_swin", "vqt"):
        return
    for methods in (("prefix", other), (other, "prefix")):
        model = shake(tuned(name, *methods), 0.05)
        model(image()).square().sum().backward()


def test_torch_keeps_no_learned_key_of_its_own():
    model = tuned("open_clip", "prefix")
    keys = set(model.backbone.state_dict())
    model(image())
    assert set(model.backbone.state_dict()) == keys == set(backbone("open_clip").state_dict())
    assert model.backbone.model.transformer.resblocks[0].attn.bias_k is None


def test_a_wrong_number_of_prefixes_is_refused():
    with pytest.raises(ValueError, match="prefix: prefixes is 0; at least 1"):
        build({"name": "prefix", "prefixes": 0}, backbone("timm_vit"))
