"""KronA equals a product with torch.kron, and peft's LoKr with both factors full."""

import copy

import peft
import pytest
import torch
from torch import nn

from tests.zoo import backbone, image
from vpeft.methods import build
from vpeft.methods.krona import Kronecker
from vpeft.tuned import Tuned


def test_output_form_equals_the_kronecker_product_and_so_do_its_gradients():
    torch.manual_seed(0)
    update = Kronecker([slice(0, 24), slice(48, 72)], 72, 24, scale=0.7, factor=None)
    for parameter in update.parameters():
        nn.init.normal_(parameter)
    assert [tuple(a.shape) for a in update.a] == [(4, 4)] * 2
    assert [tuple(b.shape) for b in update.b] == [(6, 6)] * 2
    x, y = torch.randn(2, 3, 24), torch.randn(2, 3, 72)
    out = update.output(x, y)
    gradients = torch.autograd.grad(out.square().sum(), list(update.parameters()))
    q, v = (x @ torch.kron(a, b).T for a, b in zip(update.a, update.b, strict=True))
    wanted = y + 0.7 * torch.cat([q, torch.zeros_like(q), v], dim=-1)
    torch.testing.assert_close(out, wanted)
    expected = torch.autograd.grad(wanted.square().sum(), list(update.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-3)


def test_features_equal_those_of_pefts_lokr_with_full_factors():
    body = backbone("hf_vit")
    config = peft.LoKrConfig(r=32, alpha=32, target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(copy.deepcopy(body.model), config)
    (method,) = build({"name": "krona"}, body)
    tuned = Tuned(body, [method], nn.Identity()).eval()
    factors = {name: p for name, p in theirs.named_parameters() if "lokr_w" in name}
    assert len(factors) == len(list(method.parameters()))
    torch.manual_seed(0)
    with torch.no_grad():
        for number, update in enumerate(method.updates):
            layer, part = number // 2, ("q_proj", "v_proj")[number % 2]
            for own, key in ((update.a[0], "lokr_w1"), (update.b[0], "lokr_w2")):
                (name,) = [n for n in factors if f".{layer}." in n and f".{part}." in n and f".{key}." in n]
                factors[name].copy_(own.copy_(torch.randn_like(own) * 0.3))
        wanted = theirs.eval()(image()).last_hidden_state[:, 0]
        torch.testing.assert_close(tuned(image()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": []}, "^krona: targets is empty"),
        ({"factor": 0}, "^krona: factor is 0; at least 1"),
        ({"scale": 0.0}, "^krona: scale is 0.0; anything but 0"),
        ({"targets": ["norm1"]}, "^krona: targets .* name a norm"),
        ({"targets": ["q", "qkv"]}, "^krona: q, qkv name one map twice"),
        ({"targets": ["query"]}, "no affine map 'query'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "krona", **options}, backbone("timm_vit"))
