"""Pixel shuffle: nanoVLM's numbers, Idefics3's module with the same weights, and grids of any shape."""

import pytest
import torch
from transformers import Idefics3Config, LlamaConfig
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from mllm.connectors.pixel_shuffle import PixelShuffle
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.shapes import shapes


def test_factors_2_and_3_equal_nanovlm():
    g = golden("mllm_pixel_shuffle")
    x = g["input/x"].requires_grad_()
    outputs, found = {}, {}
    modules = {f: PixelShuffle(*shapes(5, 7, grid=(6, 6)), factor=f) for f in (2, 3)}
    for factor, module in modules.items():
        parity.load(module, g, lambda name, f=factor: f"factor{f}.{name}")
        assert torch.equal(module.shuffle(x), g[f"output/shuffled{factor}"])
        outputs[f"factor{factor}"] = module(x)
    parity.hold_outputs(g, outputs)
    parity.backward(g, outputs)
    for factor, module in modules.items():
        found |= parity.gradients(module, lambda name, f=factor: f"factor{f}.{name}")
    parity.hold_gradients(g, found | {"input.x": x.grad})


@pytest.mark.parametrize("factor", [2, 4])
def test_idefics3_orders_blocks_and_channels_in_the_same_way(factor):
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(hidden_size=5),
        text_config=LlamaConfig(hidden_size=8, num_attention_heads=1),
        scale_factor=factor,
    )
    theirs, ours = Idefics3Connector(config), PixelShuffle(*shapes(5, 8, grid=(8, 8)), factor=factor)
    ours.proj.load_state_dict(theirs.modality_projection.proj.state_dict())
    x = torch.randn(2, 64, 5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_a_token_is_a_block_of_a_grid_that_is_not_square_behind_the_prefix():
    shuffle = PixelShuffle(*shapes(2, 7, grid=(2, 4), prefix=3))
    x = torch.arange(22.0).view(1, 11, 2)
    patch = x[0, 3:].view(2, 4, 2)
    expected = torch.stack([patch[:, :2].flatten(), patch[:, 2:].flatten()])
    assert torch.equal(shuffle.shuffle(x)[0], expected)
    assert shuffle.tokens == 2


def test_it_starts_normal_with_deviation_02():
    torch.manual_seed(0)
    weight = PixelShuffle(*shapes(64, 128, grid=(4, 4))).proj.weight
    assert abs(weight.std() - 0.02) < 0.001
    assert abs(weight.mean()) < 0.001


@pytest.mark.parametrize(("factor", "grid"), [(3, (4, 6)), (4, (4, 6)), (0, (4, 6)), (-2, (4, 6))])
def test_a_factor_that_does_not_divide_the_grid_is_refused(factor, grid):
    with pytest.raises(ValueError, match=f"factor is {factor}, .* the grid of 4 x 6 patches; 1, 2 would"):
        PixelShuffle(*shapes(5, 7, grid=grid), factor=factor)
