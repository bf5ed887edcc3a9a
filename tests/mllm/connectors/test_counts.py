"""Parameters of every connector: published or counted at full size, and the formulas of the docstrings elsewhere."""

import math

import pytest
import torch

from mllm.connectors import build
from mllm.connectors.resampler import Perceiver
from mllm.qformer import QFormer
from tests.mllm.shapes import shapes


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def counted(name: str, vision_dim: int, text_dim: int, grid: tuple[int, int] = (24, 24), **options) -> int:
    """On the meta device, where nothing is allocated."""
    with torch.device("meta"):
        return count(build({"name": name, **options}, *shapes(vision_dim, text_dim, grid)))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("linear", {"vision_dim": 1024, "text_dim": 4096}, 4_198_400),
        ("mlp", {"vision_dim": 1024, "text_dim": 4096}, 20_979_712),
        ("mlp", {"vision_dim": 1024, "text_dim": 5120}, 31_467_520),
        ("avg_pool", {"vision_dim": 1024, "text_dim": 4096}, 20_979_712),
        ("pixel_shuffle", {"vision_dim": 768, "text_dim": 960, "factor": 4}, 11_796_480),
        ("pixel_shuffle", {"vision_dim": 768, "text_dim": 576, "factor": 2}, 1_769_472),
        ("c_abstractor", {"vision_dim": 1024, "text_dim": 4096}, 37_398_016),
        ("c_abstractor", {"vision_dim": 1024, "text_dim": 4096, "grid": (16, 16)}, 37_070_336),
        ("d_abstractor", {"vision_dim": 1024, "text_dim": 4096}, 55_944_032),
        ("d_abstractor", {"vision_dim": 1024, "text_dim": 4096, "grid": (16, 16)}, 55_616_352),
        # TinyLLaVA's
        ("resampler", {"vision_dim": 1024, "text_dim": 4096, "tokens": 128, "dim": 4096, "depth": 3}, 432_623_616),
        ("resampler", {"vision_dim": 1024, "text_dim": 2048}, 63_019_008 + 1024 * 2048 + 2048),
        # BLIP-2 with OPT-2.7B, OPT-6.7B and Flan-T5-XL, InstructBLIP with Vicuna-7B; the reference leaves ln_vision out
        ("qformer", {"vision_dim": 1408, "text_dim": 2560}, 107_130_880 + 2 * 1408),
        ("qformer", {"vision_dim": 1408, "text_dim": 4096}, 108_312_064 + 2 * 1408),
        ("qformer", {"vision_dim": 1408, "text_dim": 2048}, 106_737_152 + 2 * 1408),
        (
            "qformer",
            {"vision_dim": 1408, "text_dim": 4096, "instructed": True, "vocab": 30523},
            188_834_560 + 2 * 1408,
        ),
    ],
)
def test_published_sizes_have_the_published_counts(name, options, expected):
    assert counted(name, **options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"context_dim": 1408}, 105_137_664 + 24_576),
        ({"context_dim": 1024}, 101_623_296),
        ({"context_dim": 1408, "vocab": 30522}, 185_659_392 + 24_576),
        ({"context_dim": 1408, "vocab": 30523}, 185_660_160 + 24_576),
    ],
)
def test_the_q_former_alone_has_the_counts_of_transformers(options, expected):
    with torch.device("meta"):
        assert count(QFormer(32, **options)) == expected


def test_the_perceiver_alone_has_the_count_of_openflamingo():
    with torch.device("meta"):
        assert count(Perceiver(1024)) == 63_019_008


def mlp(dv: int, d: int, depth: int) -> int:
    return d * (dv + 1) + (depth - 1) * d * (d + 1)


def resampler(dv: int, d: int, tokens: int, depth: int, heads: int, head_dim: int, ratio: int, dim: int = 0) -> int:
    w, a = dim or dv, heads * head_dim
    inner = tokens * w + depth * (4 * a * w + 2 * ratio * w * w + 6 * w) + 2 * w
    return inner + (w * (dv + 1) if dim else 0) + (d * (w + 1) if dim != d else 0)


def qformer(
    dv: int, d: int, tokens: int, dim: int, depth: int, heads: int, hidden: int, cross_every: int, **text: int
) -> int:
    layer, cross = 4 * dim * dim + 9 * dim + 2 * dim * hidden + hidden, 2 * dim * dim + 2 * dv * dim + 6 * dim
    total = tokens * dim + 2 * dim + depth * layer + math.ceil(depth / cross_every) * cross
    if text:
        total += depth * (2 * dim * hidden + hidden + 3 * dim) + (text["vocab"] + text["positions"]) * dim
    return total + d * (dim + 1) + 2 * dv


def c_abstractor(
    dv: int, d: int, patches: int, hidden: int, depth: int, mlp_depth: int, end_tokens: int = 0, tokens: int = 4
) -> int:
    c = hidden

    def bottleneck(i: int) -> int:
        s = round(i / 4)
        return i * c + c * c + 9 * c + 6 * c + 2 * s * c + s + c

    shortcut = dv * c + 2 * c if dv != c else 0
    blocks = bottleneck(dv) + shortcut + (2 * depth - 1) * bottleneck(c)
    return patches * dv + blocks + mlp(c, d, mlp_depth) + end_tokens * d


def d_abstractor(
    dv: int, d: int, patches: int, tokens: int, dim: int, depth: int, heads: int, points: int, ffn: int, end_tokens: int
) -> int:
    layer = 6 * (dim * dim + dim) + 3 * heads * points * (dim + 1) + 2 * dim * ffn + ffn + 7 * dim
    before = dim * (dv + 1) if dv != dim else 0
    return patches * dim + tokens * (dim + 2) + depth * layer + d * (dim + 1) + before + end_tokens * dim


@pytest.mark.parametrize(("dv", "d", "grid"), [(12, 20, (4, 4)), (16, 8, (4, 6)), (24, 24, (6, 8))])
def test_other_sizes_have_the_counts_of_the_docstrings(dv, d, grid):
    patches = grid[0] * grid[1]
    assert counted("linear", dv, d, grid) == mlp(dv, d, 1)
    for depth in (1, 2, 3):
        assert counted("mlp", dv, d, grid, depth=depth) == mlp(dv, d, depth)
        assert counted("avg_pool", dv, d, grid, tokens=4, depth=depth) == mlp(dv, d, depth)
    assert counted("pixel_shuffle", dv, d, grid, factor=2) == 4 * dv * d
    for width in ({}, {"dim": 20}, {"dim": 24}):
        options = {"tokens": 5, "depth": 2, "heads": 3, "head_dim": 7, "ratio": 2, **width}
        assert counted("resampler", dv, d, grid, **options) == resampler(dv, d, **options)
    options = {"tokens": 5, "dim": 24, "depth": 5, "heads": 3, "hidden": 9, "cross_every": 3}
    assert counted("qformer", dv, d, grid, **options) == qformer(dv, d, **options)
    text = {"vocab": 31, "positions": 12}
    assert counted("qformer", dv, d, grid, **options, instructed=True, **text) == qformer(dv, d, **options, **text)
    options = {"tokens": 9, "hidden": 16, "depth": 2, "mlp_depth": 3, "end_tokens": 2}
    assert counted("c_abstractor", dv, d, grid, **options) == c_abstractor(dv, d, patches, **options)
    options = {"tokens": 9, "dim": 24, "depth": 2, "heads": 3, "points": 2, "ffn": 10, "end_tokens": 2}
    assert counted("d_abstractor", dv, d, grid, **options) == d_abstractor(dv, d, patches, **options)
