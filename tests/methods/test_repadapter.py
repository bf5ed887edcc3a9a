"""RepAdapter equals two convolutions of width one, the second in groups, around a residual."""

import pytest
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from tests.zoo import TIMM, backbone, image
from vpeft.backbones import wrap
from vpeft.methods import build
from vpeft.methods.repadapter import Adapter
from vpeft.tuned import Tuned


def shaken(method: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.2)
    return method


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_and_gradients_equal_the_plain_equation(groups):
    adapter = Adapter(32, 8, groups, scale=0.5, dropout=0.1).eval()
    shaken(adapter)
    down = nn.Conv1d(32, 8, 1)
    up = nn.Conv1d(8, 32, 1, groups=groups)
    with torch.no_grad():
        down.weight.copy_(adapter.down.weight[..., None])
        down.bias.copy_(adapter.down.bias)
        up.weight.copy_(adapter.up.reshape(32, 8 // groups, 1))
        up.bias.copy_(adapter.bias)
    h = torch.randn(2, 5, 32)
    ours, theirs = h.clone().requires_grad_(), h.clone().requires_grad_()
    out = adapter(ours, ours)
    wanted = theirs + 0.5 * up(down(theirs.mT)).mT
    torch.testing.assert_close(out, wanted)
    out.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(adapter.down.weight.grad, down.weight.grad[..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter.up.grad.reshape(up.weight.shape), up.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter.bias.grad, up.bias.grad, rtol=1e-4, atol=1e-4)


def test_attention_and_mlp_read_what_the_adapters_give():
    plain, body = backbone("timm_vit"), backbone("timm_vit")
    (method,) = build({"name": "repadapter"}, body)
    tuned = Tuned(body, [shaken(method)], nn.Identity()).eval()
    x = torch.randn(2, 17, 32)
    block = plain.blocks[0].module
    with torch.no_grad():
        h = block.norm1(x)
        x1 = x + block.attn(method.attn[0](x, h))
        h = block.norm2(x1)
        wanted = x1 + block.mlp(method.mlp[0](x1, h))
        torch.testing.assert_close(tuned.backbone.blocks[0](x), wanted)


def test_a_gated_attention_merges_its_gate_too():
    def gated() -> Eva:
        torch.manual_seed(0)
        return Eva(**TIMM, attn_type="rope", use_rot_pos_emb=True)

    def with_gates(model: Eva) -> Eva:
        torch.manual_seed(1)
        for block in model.blocks:
            block.attn.gate = nn.Linear(32, 32)
        return model

    body = wrap(with_gates(gated()), "gated")
    (method,) = build({"name": "repadapter"}, body)
    tuned = Tuned(body, [shaken(method)], nn.Identity()).eval()
    merged = with_gates(gated())
    merged.load_state_dict(tuned.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(wrap(merged, "gated")(image()), body(image()), rtol=1e-4, atol=1e-5)


def test_windows_filled_up_with_zeros_refuse_to_merge():
    swin = SwinTransformer(
        img_size=64, patch_size=4, window_size=5, embed_dim=32, depths=(2,), num_heads=(2,), num_classes=0
    )
    body = wrap(swin, "swin")
    assert body.blocks[0].pads
    assert not backbone("timm_swin").blocks[0].pads
    (method,) = build({"name": "repadapter"}, body)
    with pytest.raises(ValueError, match="repadapter: swin fills its windows up with zeros"):
        Tuned(body, [method], nn.Identity()).merge()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": 0}, "^repadapter: bottleneck is 0; at least 1"),
        ({"groups": 3}, "^repadapter: groups is 3; a divisor of the bottleneck 8 and of the width 32"),
        ({"groups": 0}, "^repadapter: groups is 0"),
        ({"scale": 0.0}, "^repadapter: scale is 0.0; anything but 0"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "repadapter", **options}, backbone("timm_vit"))
