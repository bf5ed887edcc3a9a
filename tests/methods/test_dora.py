"""DoRA against Hugging Face peft, and its norm against the one of the whole matrix."""

import pytest
import torch

from tests.zoo import backbone, image
from vpeft.methods import build

ROLES = ["qkv", "proj", "fc1", "fc2"]


def ours(**options):
    body = backbone("timm_vit")
    (method,) = build({"name": "dora", "rank": 4, **options}, body)
    for update in method.updates:
        for up, magnitude in zip(update.low.up, update.magnitude, strict=True):
            torch.nn.init.normal_(up, std=0.1)
            magnitude.data.mul_(torch.rand_like(magnitude) + 0.5)
    return body, method


def test_output_and_gradients_equal_pefts():
    from peft import LoraConfig, get_peft_model

    body, method = ours(alpha=12.0, targets=ROLES)
    method.attach(body)
    theirs = backbone("timm_vit")
    where = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    adapted = get_peft_model(theirs.model, LoraConfig(r=4, lora_alpha=12, target_modules=where, use_dora=True))
    layers = [module for module in adapted.modules() if hasattr(module, "lora_magnitude_vector")]
    assert len(layers) == len(method.updates)
    pairs = []
    for layer, update, down in zip(layers, method.updates, method.down, strict=True):
        magnitude = layer.lora_magnitude_vector["default"]
        pairs += [
            (layer.lora_A["default"].weight, down.weight),
            (layer.lora_B["default"].weight, update.low.up[0]),
            (magnitude.weight, update.magnitude[0]),
        ]
    with torch.no_grad():
        for wanted, have in pairs:
            wanted.copy_(have)

    out, wanted = body(image()), adapted(image())
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    wanted.square().sum().backward()
    for theirs, mine in pairs:
        assert (mine.grad - theirs.grad).abs().max() < 1e-4 * theirs.grad.abs().max()


@pytest.mark.parametrize("targets", [["q", "v"], ["qkv"], ["k", "fc1", "fc2"]])
def test_the_norm_is_that_of_the_whole_matrix_and_both_forms_agree(targets):
    body, method = ours(targets=targets)
    for affine, update in zip((a for a, _ in method._all(body)), method.updates, strict=True):
        w, b = affine.tensors()["weight"], affine.tensors()["bias"]
        whole = w + update.low.scale * update.low.b() @ update.low.a()
        torch.testing.assert_close(update.norm(w), whole.norm(dim=1))
        x = torch.randn(2, 5, w.shape[1])
        y = torch.nn.functional.linear(x, w, b)
        wanted = torch.nn.functional.linear(x, update.weight(w), b)
        torch.testing.assert_close(update.output(x, y), wanted, atol=1e-4, rtol=1e-4)


def test_a_direction_that_cancels_the_weight_stays_finite():
    _, method = ours(rank=32, targets=["proj"], alpha=32.0)
    update, w = method.updates[0], method.updates[0].affine.tensors()["weight"]
    with torch.no_grad():
        method.down[0].weight.copy_(-w)
        update.low.up[0].copy_(torch.eye(32))
    assert torch.isfinite(update.norm(w)).all()


def test_a_map_that_another_method_changes_is_refused():
    body = backbone("timm_vit")
    first, second = build([{"name": "lora"}, {"name": "dora"}], body)
    first.attach(body)
    with pytest.raises(ValueError, match=r"^dora: LowRank changes a map of \['q', 'v'\] already.*Put dora before it"):
        second.attach(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "^dora: rank is 0"),
        ({"targets": []}, r"^dora: .* targets \[\]"),
        ({"alpha": 0.0}, "^dora: alpha is 0.0; anything but 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "dora", **options}, backbone("timm_vit"))
