"""Convpass equals a convolution of the patches' map, and one of an image of one pixel for each prefix token."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import TIMM, backbone, image
from vpeft.backbones import Backbone, wrap
from vpeft.methods import build
from vpeft.methods.convpass import Bypass
from vpeft.tuned import Tuned


def attached(body: Backbone, *specs: dict) -> Tuned:
    torch.manual_seed(3)
    methods = build(list(specs), body)
    for method in methods:
        for parameter in method.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Tuned(body, methods, nn.Identity()).eval()


def plain(adapter: Bypass, h: Tensor, prefix: int, grid: tuple[int, int], scale: float) -> Tensor:
    """The paper's equation on tokens [B N C], every image and every prefix token by itself."""

    def gelu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    out = []
    for tokens in h:
        z = gelu(tokens @ adapter.down.weight.T + adapter.down.bias).T  # R N
        maps = [z[:, [i]].reshape(1, -1, 1, 1) for i in range(prefix)] + [z[:, prefix:].reshape(1, -1, *grid)]
        mixed = [F.conv2d(m, adapter.conv.weight, adapter.conv.bias, padding=1)[0].flatten(1) for m in maps]
        out.append(scale * (gelu(torch.cat(mixed, dim=1)).T @ adapter.up.weight.T + adapter.up.bias))
    return torch.stack(out)


@pytest.mark.parametrize("bottleneck", [1, 5])
def test_values_and_gradients_equal_the_plain_equation_on_a_wide_grid_with_registers(bottleneck):
    body = wrap(VisionTransformer(**{**TIMM, "img_size": (48, 80)}, reg_tokens=4))
    tuned = attached(body, {"name": "convpass", "bottleneck": bottleneck, "scale": 0.5})
    adapter = tuned.methods[0].adapters[1]
    x, h, y = torch.randn(3, 2, 5 + 3 * 5, 32)
    ours, theirs = h.clone().requires_grad_(), h.clone().requires_grad_()
    out, wanted = adapter(x, ours, y), y + plain(adapter, theirs, 5, (3, 5), 0.5)
    torch.testing.assert_close(out, wanted)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((out * weights).sum(), [ours, *adapter.parameters()])
    others = torch.autograd.grad((wanted * weights).sum(), [theirs, *adapter.parameters()])
    for a, b in zip(grads, others, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_both_branches_read_what_their_norm_gives():
    tuned, body = attached(backbone("timm_vit"), {"name": "convpass", "bottleneck": 4}), backbone("timm_vit")
    block, (first, second) = body.blocks[0].module, tuned.methods[0].adapters[:2]
    x = torch.randn(2, 17, 32)
    with torch.no_grad():
        h = block.norm1(x)
        middle = x + block.attn(h) + plain(first, h, 1, (4, 4), 1.0)
        h = block.norm2(middle)
        wanted = middle + block.mlp(h) + plain(second, h, 1, (4, 4), 1.0)
        torch.testing.assert_close(tuned.backbone.blocks[0](x), wanted)


def test_each_stage_of_swin_is_convolved_on_its_own_map():
    tuned = attached(backbone("timm_swin"), {"name": "convpass", "bottleneck": 4})
    for index, grid, dim in ((0, (16, 16), 32), (7, (8, 8), 64)):
        adapter = tuned.methods[0].adapters[index]
        h = torch.randn(2, *grid, dim)
        out = adapter(h, h, torch.zeros_like(h))
        torch.testing.assert_close(out.flatten(1, 2), plain(adapter, h.flatten(1, 2), 0, grid, 1.0))


@pytest.mark.parametrize("body", ["timm_registers", "timm_swin"])
@pytest.mark.parametrize("prompts_first", [True, False])
def test_prompts_of_another_method_are_prefix_tokens_too(body, prompts_first):
    specs = [{"name": "vpt", "prompts": 3}, {"name": "convpass", "bottleneck": 4}]
    tuned = attached(backbone(body), *(specs if prompts_first else reversed(specs)))
    adapter = tuned.methods[1 if prompts_first else 0].adapters[0]
    prefix, grid = (8, (4, 4)) if body == "timm_registers" else (3, (16, 16))
    h = torch.randn(2, prefix + grid[0] * grid[1], 32)
    torch.testing.assert_close(adapter(h, h, torch.zeros_like(h)), plain(adapter, h, prefix, grid, 1.0))
    assert tuned(image()).isfinite().all()


def test_the_convolution_starts_as_the_identity_or_as_xavier_s():
    x = torch.randn(1, 5, 4, 4)
    identity, xavier = (
        build({"name": "convpass", "bottleneck": 5, "conv_init": init}, backbone("timm_vit"))[0].adapters[0].conv
        for init in ("identity", "xavier")
    )
    torch.testing.assert_close(identity(x), x)
    assert xavier.weight.abs().max() <= (6 / (2 * 5 * 9)) ** 0.5
    assert xavier.weight.std() > 0.1


def test_drop_path_grows_with_depth_and_leaves_whole_images_out():
    (method,) = build({"name": "convpass", "drop_path": 0.4}, backbone("timm_vit"))
    assert [adapter.drop_path.drop_prob for adapter in method.adapters] == [0.0, 0.0, 0.4, 0.4]
    tuned = attached(backbone("timm_vit"), {"name": "convpass", "drop_path": 0.5, "dropout": 0.0})
    adapter = tuned.methods[0].adapters[-1].train()
    h = torch.randn(64, 17, 32)
    added = adapter(h, h, torch.zeros_like(h))
    dropped = (added == 0).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    torch.testing.assert_close(added[~dropped], 2 * adapter.eval()(h, h, torch.zeros_like(h))[~dropped])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": 0}, "convpass: bottleneck is 0; at least 1"),
        ({"scale": 0.0}, "convpass: scale is 0.0; a number above 0"),
        ({"drop_path": 1.0}, "convpass: drop_path is 1.0; a number from 0 to below 1"),
        ({"dropout": 2.0}, "convpass: dropout probability has to be between 0 and 1"),
        ({"conv_init": "zero"}, "method convpass: conv_init is 'zero'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "convpass", **options}, backbone("timm_vit"))
