"""Compacter against its equations with torch.kron, block by block."""

import pytest
import torch
from torch.nn import functional as F

from tests.zoo import backbone, image, shake
from vpeft.methods import build
from vpeft.tuned import Tuned


def phm(z, a, product):
    """z W + b with W = sum_i kron(A_i, s_i t_i)."""
    w = sum(torch.kron(a_i, s_i @ t_i) for a_i, s_i, t_i in zip(a, product.s, product.t, strict=True))
    return z @ w + product.bias


def adapted(y, a, adapter):
    z = phm(y, a, adapter.down)
    z = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
    return y + phm(z, a, adapter.up)


def plain_forward(vit, method, images):
    """A timm ViT block by block, with the adapters written where the paper has them."""
    x = vit._pos_embed(vit.patch_embed(images))
    for index, block in enumerate(vit.blocks):
        y = block.attn(block.norm1(x))
        x = x + (adapted(y, method.rule.a, method.attn[index]) if len(method.attn) else y)
        x = x + adapted(block.mlp(block.norm2(x)), method.rule.a, method.mlp[index])
    return vit.norm(x)[:, 0]


@pytest.mark.parametrize("options", [{}, {"products": 2, "rank": 3}, {"attention": False}], ids=str)
def test_outputs_and_gradients_are_those_of_the_equations(options):
    body = backbone("timm_vit")
    (method,) = build({"name": "compacter", "bottleneck": 8, **options}, body)
    model = shake(Tuned(body, [method], torch.nn.Identity()).eval(), 0.3)
    plain = backbone("timm_vit").model.eval()

    out, wanted = model(image()), plain_forward(plain, method, image())
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out, backbone("timm_vit")(image()), atol=1e-2)
    parameters = dict(method.named_parameters())
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((out * cotangent).sum(), list(parameters.values()))
    theirs = torch.autograd.grad((wanted * cotangent).sum(), list(parameters.values()))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        assert (one - other).abs().max() / other.abs().max() < 1e-4, name


def test_one_rule_is_shared_by_all_adapters_and_owned_once():
    (method,) = build({"name": "compacter", "bottleneck": 8}, backbone("timm_swin"))
    assert [name for name in method.state_dict() if name.startswith("rule")] == ["rule.a"]
    rules = {id(p.shared[0]) for adapter in (*method.mlp, *method.attn) for p in (adapter.down, adapter.up)}
    assert rules == {id(method.rule)}


def test_the_activation_is_the_tanh_gelu_of_the_official_code():
    (method,) = build({"name": "compacter", "bottleneck": 8}, backbone("timm_vit"))
    adapter = method.mlp[0]
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
        y = torch.randn(3, 32)
        exact = y + adapter.up(F.gelu(adapter.down(y)))
        assert not torch.allclose(adapter(y, y, y), exact, atol=1e-5)
        torch.testing.assert_close(adapter(y, y, y), adapted(y, method.rule.a, adapter), atol=1e-4, rtol=1e-4)
