"""LLaVA's projectors: the official code's numbers, and transformers' module with the same weights."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mllm.connectors.linear import Linear
from mllm.connectors.mlp import MLP
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.shapes import shapes


def test_linear_mlp2x_and_mlp3x_equal_the_official_code():
    g = golden("mllm_llava_mlp")
    between = shapes(12, 20, grid=(2, 3))
    modules = {
        "linear": (Linear(*between), lambda name: name.replace("proj", "linear")),
        "mlp2x_gelu": (MLP(*between), lambda name: name.replace("layers", "mlp2x_gelu")),
        "mlp3x_gelu": (MLP(*between, depth=3), lambda name: name.replace("layers", "mlp3x_gelu")),
    }
    x = g["input/x"].requires_grad_()
    outputs = {}
    for name, (module, theirs) in modules.items():
        parity.load(module, g, theirs)
        outputs[name] = module(x)
    parity.hold_outputs(g, outputs)
    parity.backward(g, outputs)
    found = {"input.x": x.grad}
    for module, theirs in modules.values():
        found |= parity.gradients(module, theirs)
    parity.hold_gradients(g, found)


def test_two_linear_maps_equal_those_of_transformers():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=12), text_config=LlamaConfig(hidden_size=20, num_attention_heads=2)
    )
    theirs, ours = LlavaMultiModalProjector(config), MLP(*shapes(12, 20))
    ours.layers[0].load_state_dict(theirs.linear_1.state_dict())
    ours.layers[2].load_state_dict(theirs.linear_2.state_dict())
    x = torch.randn(2, 6, 12)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_depth_1_is_the_linear_projection():
    between = shapes(12, 20)
    mlp, linear = MLP(*between, depth=1), Linear(*between)
    linear.proj.load_state_dict(mlp.layers[0].state_dict())
    x = torch.randn(2, 6, 12)
    assert torch.equal(mlp(x), linear(x))


def test_it_starts_as_torch_starts_a_linear_map():
    torch.manual_seed(0)
    mlp = MLP(*shapes(64, 128))
    for layer in (mlp.layers[0], mlp.layers[2]):
        bound = layer.in_features**-0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert 0.9 * bound < layer.bias.abs().max() <= bound


def test_an_mlp_without_a_layer_is_refused():
    with pytest.raises(ValueError, match="depth 0 was asked for; it needs at least 1 linear map"):
        MLP(*shapes(12, 20), depth=0)
