"""(IA)^3 equals Hugging Face peft's."""

import copy

import peft
import torch
from torch import nn

from tests.zoo import backbone, image
from vpeft.methods import build
from vpeft.tuned import Tuned


def test_features_and_gradients_equal_those_of_peft():
    body = backbone("hf_vit")
    config = peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"])
    theirs = peft.get_peft_model(copy.deepcopy(body.model), config)
    (method,) = build({"name": "ia3"}, body)
    tuned = Tuned(body, [method], nn.Identity()).eval()
    pairs = []
    vectors = {name: p for name, p in theirs.named_parameters() if "ia3_l" in name}
    for index in range(2):
        own = [*method.attn[2 * index].scales, *method.attn[2 * index + 1].scales, method.inner[index].scale]
        for part, parameter in zip(("k_proj", "v_proj", "fc2"), own, strict=True):
            (name,) = [name for name in vectors if f".{index}." in name and f".{part}." in name]
            pairs.append((parameter, vectors[name]))
    assert len(pairs) == len(vectors) == len(list(method.parameters()))
    torch.manual_seed(0)
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(1 + 0.3 * torch.randn_like(own))
            other.copy_(own.view_as(other))

    features, wanted = tuned(image()), theirs.eval()(image()).last_hidden_state[:, 0]
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5)
    features.square().sum().backward()
    wanted.square().sum().backward()
    for own, other in pairs:
        difference = (own.grad - other.grad.flatten()).abs().max() / other.grad.abs().max()
        assert difference < 1e-4


def test_queries_of_a_fused_qkv_stay_as_they_are():
    (method,) = build({"name": "ia3"}, backbone("timm_vit"))
    with torch.no_grad():
        for scale in method.attn[0].scales:
            scale.fill_(2.0)
    y = torch.ones(1, 1, 96)
    assert method.attn[0].output(y, y).flatten().tolist() == [1.0] * 32 + [2.0] * 64
