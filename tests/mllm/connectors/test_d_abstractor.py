"""The D-Abstractor: Honeybee's numbers."""

import pytest
import torch

from mllm.connectors.d_abstractor import DAbstractor, spread
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.shapes import shapes

PLACES = {
    "positions": "v_pos_emb",
    "end_tokens": "eos_tokens",
    "reference": "reference_points",
    "queries": "query_position_embeddings.weight",
    "into": "input_proj.0",
    "proj": "output_proj",
}
PARTS = {
    "attention.in_proj_": "self_attn.qkv.",
    "attention.out_proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "deform": "encoder_attn",
    "norm2": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "norm3": "final_layer_norm",
}


def theirs(name: str) -> str:
    first, _, rest = name.partition(".")
    if first in PLACES:
        return f"{PLACES[first]}.{rest}".removesuffix(".")
    number, _, part = rest.partition(".")
    ours = next(p for p in PARTS if part.startswith(p))
    return f"layers.{number}.{PARTS[ours]}{part.removeprefix(ours)}"


def file() -> dict[str, torch.Tensor]:
    """The golden file, the three maps of an attention stacked as torch has them."""
    g = dict(golden("mllm_d_abstractor"))
    g["cotangent/tokens"] = g.pop("cotangent")
    for kind in ("method", "grad"):
        g[f"{kind}/query_position_embeddings.weight"] = g[f"{kind}/query_position_embeddings.weight"][None]
        for layer in (0, 1):
            for of in ("weight", "bias"):
                names = [f"{kind}/layers.{layer}.self_attn.{x}_proj.{of}" for x in "qkv"]
                g[f"{kind}/layers.{layer}.self_attn.qkv.{of}"] = torch.cat([g.pop(name) for name in names])
    return g


def small(**options):
    sizes = {"tokens": 4, "dim": 16, "depth": 2, "heads": 2, "points": 3, "ffn": 20}
    return DAbstractor(*shapes(8, 10, grid=(5, 5)), **{**sizes, **options})


def test_it_equals_the_official_code():
    g = file()
    module = small(end_tokens=2).eval()
    parity.load(module, g, theirs)
    hidden = []
    for layer in module.layers:
        layer.register_forward_hook(lambda _, __, output: hidden.append(output))
    x = g["input/x"].requires_grad_()
    outputs = {"tokens": module(x)}
    parity.hold_outputs(g, outputs | {"hidden_layer0": hidden[0], "hidden_layer1": hidden[1]})
    parity.backward(g, outputs)
    parity.hold_gradients(g, parity.gradients(module, theirs) | {"input.x": x.grad})
    assert module.tokens == 6


def test_queries_start_at_a_regular_grid_from_the_first_patch_to_the_last():
    torch.testing.assert_close(spread(2, (5, 5)), golden("mllm_d_abstractor")["output/initial_reference_points"])
    assert spread(2, (2, 4))[0].tolist() == [[0.125, 0.25], [0.875, 0.25], [0.125, 0.75], [0.875, 0.75]]


def test_features_of_its_own_width_need_no_map_before():
    module = DAbstractor(*shapes(16, 10, grid=(5, 5)), tokens=4, dim=16, depth=1, heads=2)
    assert not list(module.into.parameters())


def test_prefix_tokens_are_left_out():
    without = small().eval()
    with_prefix = DAbstractor(
        *shapes(8, 10, grid=(5, 5), prefix=2), tokens=4, dim=16, depth=2, heads=2, points=3, ffn=20
    ).eval()
    with_prefix.load_state_dict(without.state_dict())
    x = torch.randn(2, 27, 8)
    assert torch.equal(with_prefix(x), without(x[:, 2:]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 5}, "tokens is 5, which is not a square; 4 and 9 are"),
        ({"depth": 0}, "depth is 0; it has to be at least 1"),
        ({"points": 0}, "points is 0; it has to be at least 1"),
        ({"heads": 3}, "heads is 3, which does not divide dim, 16"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)
