"""The C-Abstractor: Honeybee's numbers."""

import pytest
import torch
import torch.nn.functional as F

from mllm.connectors.c_abstractor import CAbstractor
from mllm.connectors.grid import to_map
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.shapes import shapes

PLACES = {"positions": "pos_emb", "end_tokens": "eos_tokens", "stage1": "net.0", "stage2": "net.2", "mlp": "readout"}


def theirs(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{PLACES[first]}.{rest}".removesuffix(".")


def small(**options):
    return CAbstractor(*shapes(8, 10, grid=(5, 5)), **{"tokens": 4, "hidden": 12, "depth": 2, **options})


def test_it_equals_the_official_code():
    g = dict(golden("mllm_c_abstractor"))
    g["cotangent/tokens"] = g.pop("cotangent")
    module = small(end_tokens=2)
    parity.load(module, g, theirs)
    given = g["input/x"].clone()
    x = g["input/x"].requires_grad_()
    stage1 = module.stage1(to_map(x + module.positions, (5, 5)))
    pooled = F.adaptive_avg_pool2d(stage1, 2)
    outputs = {"tokens": module(x)}
    assert torch.equal(x, given)
    parity.hold_outputs(g, outputs | {"stage1": stage1, "pooled": pooled, "stage2": module.stage2(pooled)})
    parity.backward(g, outputs)
    parity.hold_gradients(g, parity.gradients(module, theirs) | {"input.x": x.grad})
    assert module.tokens == 6


def test_prefix_tokens_are_left_out():
    torch.manual_seed(0)
    without = small()
    with_prefix = CAbstractor(*shapes(8, 10, grid=(5, 5), prefix=2), tokens=4, hidden=12, depth=2)
    with_prefix.load_state_dict(without.state_dict())
    x = torch.randn(2, 27, 8)
    assert torch.equal(with_prefix(x), without(x[:, 2:]))


def test_positions_and_end_tokens_start_small_and_different():
    torch.manual_seed(0)
    module = CAbstractor(*shapes(64, 64), tokens=4, hidden=8, depth=1, end_tokens=40)
    assert module.end_tokens is not None
    for table in (module.positions, module.end_tokens):
        assert abs(table.std() - 0.02) < 0.002


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 5}, "tokens is 5, which is not a square; 4 and 9 are"),
        ({"tokens": 36}, "the grid has 5 x 5 patches; at most 25 fit"),
        ({"depth": 0}, "depth is 0; it has to be at least 1"),
        ({"mlp_depth": 0}, "an MLP of depth 0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)
