"""LoRA against Hugging Face peft, and its own two forms against each other."""

import pytest
import torch

from tests.zoo import backbone, image
from vpeft.methods import build

ROLES = {"qkv": r"blocks\.\d+\.attn\.qkv", "all": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"}


@pytest.mark.parametrize("where", ROLES)
def test_output_and_gradients_equal_pefts_with_the_same_factors(where):
    from peft import LoraConfig, get_peft_model

    ours, theirs = backbone("timm_vit"), backbone("timm_vit")
    targets = ["qkv"] if where == "qkv" else ["qkv", "proj", "fc1", "fc2"]
    spec = {"name": "lora", "rank": 4, "alpha": 12.0, "targets": targets, "shared_a": True}
    (method,) = build(spec, ours)
    method.attach(ours)
    adapted = get_peft_model(theirs.model, LoraConfig(r=4, lora_alpha=12, target_modules=ROLES[where]))
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    assert len(layers) == len(method.updates)
    for layer, update, down in zip(layers, method.updates, method.down, strict=True):
        torch.nn.init.normal_(update.up[0], std=0.1)
        layer.lora_A["default"].weight.data.copy_(down.weight)
        layer.lora_B["default"].weight.data.copy_(update.up[0])

    out, wanted = ours(image()), adapted(image())
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    wanted.square().sum().backward()
    for layer, update, down in zip(layers, method.updates, method.down, strict=True):
        torch.testing.assert_close(down.weight.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(update.up[0].grad, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [["q", "v"], ["k"], ["qkv"], ["q", "k", "v", "proj"], ["fc1", "fc2"]])
@pytest.mark.parametrize("shared_a", [False, True])
@pytest.mark.parametrize("name", ["timm_vit", "hf_vit"])
def test_the_update_of_the_output_is_the_update_of_the_weight(name, targets, shared_a):
    body = backbone(name)
    (method,) = build({"name": "lora", "rank": 2, "targets": targets, "shared_a": shared_a}, body)
    for (affine, _), update in zip(method.maps(body.blocks[0]), method.updates, strict=False):
        for up in update.up:
            torch.nn.init.normal_(up)
        w = affine.owner.weight
        x = torch.randn(2, 5, w.shape[1])
        y = torch.nn.functional.linear(x, w)
        torch.testing.assert_close(
            update.output(x, y), torch.nn.functional.linear(x, update.weight(w)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"targets": ["q", "v"]}, lambda d, r, depth: depth * 4 * d * r),
        ({"targets": ["qkv"], "shared_a": True}, lambda d, r, depth: depth * 4 * d * r),
        ({"targets": ["qkv"]}, lambda d, r, depth: depth * 4 * d * r),
        ({"targets": ["q", "k", "v"]}, lambda d, r, depth: depth * 6 * d * r),
    ],
)
def test_counts(spec, count):
    body = backbone("timm_vit")
    (method,) = build({"name": "lora", "rank": 4, **spec}, body)
    assert sum(p.numel() for p in method.parameters()) == count(32, 4, 2)


def test_an_alpha_that_leaves_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match=r"^lora: alpha is 0\.0; anything but 0"):
        build({"name": "lora", "alpha": 0.0}, backbone("timm_vit"))
