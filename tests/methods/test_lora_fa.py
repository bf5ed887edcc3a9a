"""LoRA-FA is LoRA with a frozen A, and saves no input of a map."""

import pytest
import torch

from tests.zoo import backbone, image
from vpeft.methods import build


def kept_for_backward(name):
    """Sizes of the activations [B, N, .] that one update keeps for its backward."""
    body = backbone("timm_vit")
    (method,) = build({"name": name, "rank": 3, "targets": ["fc2"]}, body)
    method.train()
    x = torch.randn(2, 17, method.down[0].weight.shape[1], requires_grad=True)
    y = torch.randn(2, 17, method.updates[0].out_dim, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        out = method.updates[0].output(x, y)
    out.sum().backward()
    assert x.grad is not None
    return x.numel(), sizes


def test_a_map_keeps_r_numbers_of_every_token_and_not_its_input():
    whole, sizes = kept_for_backward("lora_fa")
    assert 2 * 17 * 3 in sizes
    assert whole not in sizes
    whole, sizes = kept_for_backward("lora")
    assert whole in sizes, "LoRA does keep it, or this test sees nothing"


def test_it_is_lora_but_for_the_gradient_of_a():
    results = []
    for name in ("lora", "lora_fa"):
        body = backbone("timm_vit")
        (method,) = build({"name": name, "rank": 4}, body)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for tensor in (*(d.weight for d in method.down), *(up for u in method.updates for up in u.up)):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        method.attach(body)
        body.requires_grad_(False)
        out = body(image())
        out.square().sum().backward()
        results.append((out, [up.grad for update in method.updates for up in update.up]))
        trained = {key for key, _ in method.named_parameters()}
    assert not any(key.startswith("down") for key in trained)
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank is 0"), ({"targets": []}, r"targets \[\]"), ({"alpha": 0.0}, "alpha is 0.0; anything but 0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^lora_fa: .*{message}"):
        build({"name": "lora_fa", **options}, backbone("timm_vit"))
