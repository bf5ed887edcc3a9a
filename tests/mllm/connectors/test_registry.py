"""The registry: what every connector promises, entries of a configuration, and their errors."""

import copy

import pytest
import torch
from torch import nn

from mllm import connectors
from mllm.connectors import CONNECTORS, build, check, options, resolve
from tests.mllm.shapes import shapes

# Plain connectors, small, and one for every variant with its own code path; on a grid of 4 x 6 behind one prefix token.
CASES = {
    "avg_pool": {"tokens": 4},
    "c_abstractor": {"tokens": 4, "hidden": 16, "depth": 1, "end_tokens": 1},
    "d_abstractor": {"tokens": 4, "dim": 16, "depth": 1, "heads": 2, "points": 2, "ffn": 20, "end_tokens": 1},
    "linear": {},
    "mlp": {},
    "pixel_shuffle": {},
    "qformer": {"tokens": 3, "dim": 16, "depth": 2, "heads": 2, "hidden": 20},
    "qformer instructed": {"tokens": 3, "dim": 16, "depth": 2, "heads": 2, "hidden": 20, "instructed": True},
    "resampler": {"tokens": 3, "depth": 1, "heads": 2, "head_dim": 8},
    "resampler at the width of the language model": {"tokens": 3, "depth": 1, "heads": 2, "head_dim": 8, "dim": 20},
}
TOKENS = {"avg_pool": 4, "c_abstractor": 5, "d_abstractor": 5, "linear": 25, "mlp": 25, "pixel_shuffle": 6}


def built(case: str) -> nn.Module:
    torch.manual_seed(0)
    name = case.partition(" ")[0]
    return build({"name": name, **CASES[case]}, *shapes(12, 20, grid=(4, 6), prefix=1))


def inputs(case: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    features = torch.randn(2, 25, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    text = (torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    return (features, *text) if "instructed" in case else (features,)


@pytest.mark.parametrize("case", CASES)
def test_features_become_its_tokens_and_everything_it_owns_learns(case):
    connector = built(case)
    out = connector(*inputs(case))
    assert connector.packable
    assert out.shape == (2, connector.tokens, 20)
    assert connector.tokens == TOKENS.get(case, 3)
    out.square().mean().backward()
    assert all(p.grad is not None for p in connector.parameters())
    # The text of the last layer is read by nobody, and the keys' bias cancels in the softmax.
    silent = ("qformer.layers.1.text_mlp",) if "instructed" in case else ()
    for name, parameter in connector.named_parameters():
        assert name.startswith(silent) or name.endswith("k.bias") or parameter.grad.any(), name


@pytest.mark.parametrize("case", CASES)
def test_images_do_not_see_each_other(case):
    connector = built(case).eval()
    given = inputs(case)
    alone = connector(*(t[1:] for t in given))
    torch.testing.assert_close(connector(*given)[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_copy_computes_the_same_with_parameters_of_its_own(case):
    connector = built(case).eval()
    twin = copy.deepcopy(connector)
    assert torch.equal(twin(*inputs(case)), connector(*inputs(case)))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(twin(*inputs(case)), connector(*inputs(case)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_under_autocast_the_tokens_are_nearly_the_same(case, features):
    connector = built(case).eval()
    expected = connector(*inputs(case))
    with torch.autocast("cpu", torch.bfloat16):
        out = connector(*inputs(case, features))
    assert (out.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_without_graph_breaks(case):
    connector = built(case).eval()
    compiled = torch.compile(connector, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs(case)), connector(*inputs(case)))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "mpl"}, "there is no connector 'mpl'; did you mean mlp"),
        ({"name": "zzz"}, "there is no connector 'zzz'; there are avg_pool"),
        ({"name": "mlp", "dept": 2}, "connector mlp has no 'dept'; did you mean 'depth'?"),
        ({"name": "linear", "depth": 2}, "connector linear has no 'depth'; it has no options"),
        ({"name": "mlp", "vision": 2}, "connector mlp has no 'vision'"),
        ({"name": "mlp", "depth": "two"}, "connector mlp: depth is 'two', which is not a whole number"),
        ({"depth": 2}, "connector is {'depth': 2}; it is written as a mapping with a name"),
    ],
)
def test_a_wrong_entry_is_refused_before_anything_is_built(spec, words):
    with pytest.raises(ValueError, match=words):
        check(spec)
    with pytest.raises(ValueError, match=words):
        build(spec, *shapes(12, 20))


def test_what_a_connector_refuses_begins_with_its_name():
    with pytest.raises(ValueError, match=r"^pixel_shuffle: factor is 5, which does not divide the grid of 24 x 24"):
        build({"name": "pixel_shuffle", "factor": 5}, *shapes(12, 20))
    with pytest.raises(ValueError, match=r"^avg_pool: an MLP of depth 0"):
        build({"name": "avg_pool", "depth": 0}, *shapes(12, 20))


def test_a_resolved_entry_has_every_option():
    assert resolve({"name": "avg_pool", "tokens": 4}) == {"name": "avg_pool", "tokens": 4, "depth": 2}
    assert options("mlp") == {"depth": 2}


def test_every_plain_connector_is_tried_here():
    plain = {name for name, kind in CONNECTORS.items() if not issubclass(kind, connectors.InLayer)}
    assert plain == {case.partition(" ")[0] for case in CASES}
