"""Mona alone equals the official code; on a ViT, tokens without a place in the map see the kernels' centres."""

import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden
from tests.zoo import backbone, shake, tuned
from vpeft.methods import build
from vpeft.methods.mona import Adapter, Mona
from vpeft.seams import Block, Branch

NAMES = {
    "g": "gamma",
    "h": "gammax",
    **{f"norm.{leaf}": f"norm.{leaf}" for leaf in ("weight", "bias")},
    **{f"down.{leaf}": f"project1.{leaf}" for leaf in ("weight", "bias")},
    **{f"convs.{i}.{leaf}": f"adapter_conv.conv{i + 1}.{leaf}" for i in range(3) for leaf in ("weight", "bias")},
    **{f"mix.{leaf}": f"adapter_conv.projector.{leaf}" for leaf in ("weight", "bias")},
    **{f"up.{leaf}": f"project2.{leaf}" for leaf in ("weight", "bias")},
}


def tensors(g: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    found = {ours: g[f"{part}/{theirs}"] for ours, theirs in NAMES.items()}
    return found | {"mix.weight": found["mix.weight"].flatten(1)}


def on_a_map(dim: int, grid: tuple[int, int], prefix: int = 0, size: int = 64) -> Adapter:
    adapter = Adapter(dim, size, dropout=0.0, zero_init=False)
    branch = Branch(nn.Identity(), nn.Identity())
    adapter.block = Block(nn.Identity(), branch, branch, {}, dim, grid, prefix)
    return adapter


def test_the_adapter_and_its_gradients_equal_the_official_code():
    g, adapter = golden("mod_mona"), on_a_map(32, (5, 7))
    adapter.load_state_dict(tensors(g, "method"))
    x = g["input/x"].requires_grad_()
    y = torch.zeros_like(x)
    out = x + adapter(x, x, y)
    (out * g["cotangent"]).sum().backward()
    torch.testing.assert_close(out, g["output/y"], atol=5e-5, rtol=1e-5)
    gradients = tensors(g, "grad") | {"x": g["grad/input.x"]}
    assert set(gradients) == {name for name, _ in adapter.named_parameters()} | {"x"}
    for name, gradient in gradients.items():
        ours = x.grad if name == "x" else adapter.get_parameter(name).grad
        assert (ours - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_it_acts_on_the_stream_that_holds_what_the_branch_added():
    torch.manual_seed(0)
    adapter = on_a_map(8, (3, 4), size=4)
    x, y = torch.randn(2, 2, 12, 8)
    torch.testing.assert_close(x + adapter(x, x, y), x + y + adapter(x + y, x, torch.zeros_like(y)))


def test_a_token_before_the_patches_is_a_map_of_one_pixel():
    torch.manual_seed(0)
    adapter, alone = on_a_map(8, (3, 4), prefix=2, size=4), on_a_map(8, (1, 1), size=4)
    alone.load_state_dict(adapter.state_dict())
    x = torch.randn(2, 14, 8)
    out = adapter(x, x, torch.zeros_like(x))
    for token in range(2):
        one = x[:, token : token + 1]
        torch.testing.assert_close(out[:, token : token + 1], alone(one, one, torch.zeros_like(one)))
    moved = x.clone()
    moved[:, :2] += 1
    torch.testing.assert_close(adapter(moved, moved, torch.zeros_like(x))[:, 2:], out[:, 2:])


def test_the_map_is_not_transposed_and_reaches_three_patches_far():
    torch.manual_seed(0)
    adapter = on_a_map(8, (9, 4), size=4)
    x = torch.randn(1, 36, 8)
    changed = x.clone()
    changed[:, 0] += 1
    difference = (adapter(changed, x, 0 * x) - adapter(x, x, 0 * x)).abs().sum(-1).view(9, 4)
    assert (difference[:4] > 1e-7).all()
    assert (difference[4:] == 0).all()


def test_it_starts_as_the_official_code_does():
    torch.manual_seed(0)
    adapter = Adapter(256, 64, dropout=0.1, zero_init=False)
    assert torch.equal(adapter.g.detach(), torch.full((256,), 1e-6))
    assert torch.equal(adapter.h.detach(), torch.ones(256))
    for linear in (adapter.down, adapter.up):
        assert 0.019 < linear.weight.std() < 0.021
        assert not linear.bias.any()
    for conv, side in zip(adapter.convs, (3, 5, 7), strict=True):
        assert conv.weight.shape == (64, 1, side, side)
        assert 0.95 / side < conv.weight.abs().max() <= 1 / side
    assert adapter.mix.weight.abs().max() <= 1 / 8
    assert adapter.mix.bias.any()


@pytest.mark.parametrize("name", ["timm_swin", "timm_registers"])
def test_prompts_of_another_method_are_not_taken_for_patches(name):
    model = shake(tuned(name, "vpt_deep", "mona"), 0.05)
    (mona,) = (method for method in model.methods if isinstance(method, Mona))
    prefixes = [adapter.block.prefix for adapter in [*mona.attn, *mona.mlp]]
    assert prefixes == 2 * [block.prefix for block in model.backbone.blocks]
    assert min(prefixes) >= 3


def test_what_mona_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^mona: bottleneck is 0; at least 1"):
        build({"name": "mona", "bottleneck": 0}, backbone("timm_vit"))
