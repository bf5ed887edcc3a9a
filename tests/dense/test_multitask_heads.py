"""Decode heads of the multi-task runs."""

import pytest
import torch
from torch import nn

from vpeft.heads.all_mlp import AllMLP
from vpeft.heads.hrnet import HighResolution

SWIN_T = (96, 192, 384, 768)
MERGED = (192, 384, 768, 768)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_are_those_of_the_formulas():
    assert count(AllMLP(SWIN_T, 21)) == (1440 + 4) * 256 + 4 * 256**2 + 2 * 256 + 257 * 21 == 637_717
    reduced = (18, 36, 72, 144)
    formula = sum(d * c for d, c in zip(MERGED, reduced, strict=True)) + 4 * 270**2 + 12 * 270 + 1081 * 21
    assert count(HighResolution(MERGED, 21)) == formula == 500_709
    # Four heads and their norms on Swin-T: the 2.55 M by which Polyhistor's counts with and without decoder differ.
    heads = sum(count(AllMLP(SWIN_T, k)) + 2 * sum(SWIN_T) for k in (21, 7, 1, 3))
    assert heads == 2_549_024


@pytest.mark.parametrize("head", [AllMLP((4, 8, 16), 5, width=6), HighResolution((4, 8, 16), 5, (2, 3, 4))])
def test_a_head_answers_on_the_grid_of_the_finest_map_and_reads_every_map(head):
    maps = [torch.randn(2, 4, 8, 12), torch.randn(2, 8, 4, 6), torch.randn(2, 16, 2, 3)]
    for x in maps:
        x.requires_grad_()
    y = head.eval()(maps)
    assert y.shape == (2, 5, 8, 12)
    y.square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in maps)


def test_all_mlp_equals_linear_layers_on_flat_tokens():
    """The official form: a Linear on each map's tokens, fused from coarse to fine."""
    head = AllMLP((4, 8), 5, width=6).eval()
    nn.init.uniform_(head.norm.weight)
    nn.init.uniform_(head.norm.bias)
    fine, coarse = torch.randn(2, 4, 4, 4), torch.randn(2, 8, 2, 2)
    flat = []
    for embed, x in zip(head.embed, (fine, coarse), strict=True):
        tokens = x.flatten(2).transpose(1, 2) @ embed.weight[:, :, 0, 0].T + embed.bias
        flat.append(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))
    up = nn.functional.interpolate(flat[1], (4, 4), mode="bilinear", align_corners=False)
    expected = head.predict(nn.functional.relu(head.norm(head.fuse(torch.cat([up, flat[0]], dim=1)))))
    torch.testing.assert_close(head([fine, coarse]), expected)


def test_reductions_and_maps_are_as_many():
    with pytest.raises(ValueError, match="reduces 4 maps, and the backbone hands on 2"):
        HighResolution((4, 8), 5)
