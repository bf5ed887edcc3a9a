"""Deformable attention: the official code's numbers, and the properties of its sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import golden
from vpeft.dense.deform_attn import DeformableAttention, centres, sample

SIZES = [(4, 6), (3, 3), (1, 2)]


def arguments(batch: int = 2, heads: int = 3, dim: int = 5, queries: int = 7, points: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in SIZES)
    value = torch.randn(batch, cells, heads, dim, generator=generator)
    at = torch.rand(batch, queries, heads, len(SIZES), points, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(SIZES), points, generator=generator)
    return [t.requires_grad_() for t in (value, at, weights)]


def by_grid_sample(value: Tensor, at: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads = weights.shape[:3]
    out = torch.zeros(())
    for level, cells in enumerate(value.split([h * w for h, w in SIZES], dim=1)):
        maps = cells.permute(0, 2, 3, 1).reshape(batch * heads, -1, *SIZES[level])
        grid = (2 * at[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, align_corners=False).unflatten(0, (batch, heads))  # B M D Q P
        out = out + torch.einsum("bmdqp,bqmp->bqmd", sampled, weights[:, :, :, level])
    return out.flatten(2)


def test_samples_and_their_gradients_are_those_of_grid_sample():
    inputs = arguments()
    ours, theirs = sample(inputs[0], SIZES, *inputs[1:]), by_grid_sample(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(theirs, inputs, cotangent), strict=True
    )
    for mine, reference in pairs:
        assert (mine - reference).abs().max() < 1e-5 * reference.abs().max()


def test_gradients_are_those_of_finite_differences():
    value, at, weights = (t.detach().double().requires_grad_() for t in arguments(batch=1, heads=2, dim=2, queries=3))
    assert torch.autograd.gradcheck(lambda v, a, w: sample(v, SIZES, a, w), (value, at, weights))


def test_forward_and_backward_compile_without_graph_breaks():
    inputs = arguments()
    expected = sample(inputs[0], SIZES, *inputs[1:])
    out = torch.compile(sample, fullgraph=True, backend="aot_eager")(inputs[0], SIZES, *inputs[1:])
    torch.testing.assert_close(out, expected)
    pairs = zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True)
    for compiled, eager in pairs:
        torch.testing.assert_close(compiled, eager)


def test_places_outside_of_the_map_read_zero_and_do_not_move():
    value, at, weights = arguments()
    away = torch.full_like(at, 1e9)
    away[:, 0] = -1e30
    away[:, 1, ..., 0] = torch.inf
    away = away.requires_grad_()
    out = sample(value, SIZES, away, weights)
    assert not out.any()
    gradients = torch.autograd.grad(out.sum(), [value, away, weights])
    assert not any(g.any() for g in gradients)


def test_what_is_not_a_number_is_seen_as_such_and_only_there():
    value, at, weights = (t.detach() for t in arguments())
    at[0, 3] = torch.nan
    out = sample(value, SIZES, at, weights)
    assert out[0, 3].isnan().all()
    out[0, 3] = 0
    assert out.isfinite().all()


def test_between_the_passes_nothing_is_kept_but_the_arguments():
    inputs, kept = arguments(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sample(inputs[0], SIZES, *inputs[1:])
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in inputs}


def test_reference_points_are_the_middles_of_cells():
    points = centres([(1, 2), (2, 1)], torch.device("cpu"))
    assert points.tolist() == [[[[0.25, 0.5]], [[0.75, 0.5]], [[0.5, 0.25]], [[0.5, 0.75]]]]
    g = golden("va_modules")
    torch.testing.assert_close(centres([(4, 6)], points.device), g["output/reference_16"])
    torch.testing.assert_close(centres([(8, 12), (4, 6), (2, 3)], points.device), g["output/reference_8_16_32"])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_official_code(masked):
    g = golden("va_modules")
    attention = DeformableAttention(24, 3, 3, points=2)
    names = [name for name, _ in attention.named_parameters()]
    attention.load_state_dict({name: g[f"method/msda.{name}"] for name in names})
    inputs = {name: g[f"input/msda_{name}"].requires_grad_() for name in ("query", "reference", "value")}
    sizes = [(5, 7), (3, 4), (2, 2)]
    query, reference, value = inputs.values()

    out = attention(query, reference, value, sizes)
    out_masked = attention(query, reference, value, sizes, g["input/msda_padding_mask"].bool())
    output = "msda_masked" if masked else "msda"
    torch.testing.assert_close(out_masked if masked else out, g[f"output/{output}"], atol=1e-5, rtol=1e-5)

    ((out * g["cotangent/msda"]).sum() + (out_masked * g["cotangent/msda_masked"]).sum()).backward()
    found = {f"msda.{name}": p.grad for name, p in attention.named_parameters()}
    found |= {f"input.msda_{name}": t.grad for name, t in inputs.items()}
    for name, gradient in found.items():
        reference = g[f"grad/{name}"]
        assert (gradient - reference).abs().max() < 1e-4 * reference.abs().max(), name


def test_it_starts_on_rings_around_the_reference_with_even_weights():
    attention = DeformableAttention(32, 8, 2, points=3)
    bias = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    assert bias[0, 0].tolist() == [[1, 0], [2, 0], [3, 0]]
    torch.testing.assert_close(bias[1, 1], torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()


@pytest.mark.parametrize(("dim", "heads", "levels", "points", "ratio"), [(768, 12, 3, 4, 0.5), (24, 3, 2, 5, 1.0)])
def test_the_count_is_that_of_the_docstring(dim, heads, levels, points, ratio):
    attention = DeformableAttention(dim, heads, levels, points, ratio)
    v, mlp = int(dim * ratio), heads * levels * points
    count = 3 * mlp * (dim + 1) + 2 * dim * v + v + dim
    assert sum(p.numel() for p in attention.parameters()) == count
    assert dim != 768 or count == 923_184


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 24 and values of width 12 cannot have 8 heads"):
        DeformableAttention(24, 8, 1, ratio=0.5)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_bfloat16_does_not_move_the_places(precision):
    torch.manual_seed(0)
    attention = DeformableAttention(32, 4, 1)
    nn.init.normal_(attention.attention_weights.weight)
    side = 64  # where bfloat16 could not tell one cell's middle from the next
    query, context = torch.randn(1, side * side, 32), torch.randn(1, side * side, 32)
    reference = centres([(side, side)], query.device)
    expected = attention(query, reference, context, [(side, side)])
    if precision == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(query, reference, context, [(side, side)])
    else:
        out = attention.bfloat16()(query.bfloat16(), reference, context.bfloat16(), [(side, side)])
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert math.isfinite(attention.value_proj.weight.grad.float().sum())
    assert (out - expected).abs().mean() < 0.02 * expected.abs().mean()
