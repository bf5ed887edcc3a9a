"""How many parameters every method trains: on ViT-B/16, and by its formula on other shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The subnet that NOAH publishes for CIFAR-100.
NOAH_CIFAR100 = {
    "prompts": [10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10],
    "lora": [10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1],
    "adapter": [5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1],
}

# Trained parameters without the head on ViT-B/16 at 224 pixels: the table of the reference.
COUNTS: list[tuple[dict[str, Any], int]] = [
    ({"name": "vqt"}, 9_216),
    ({"name": "dtl"}, 36_864),
    ({"name": "dtl", "kernel": 3}, 43_776),
    ({"name": "lst"}, 2_376_492),  # 2.38 M in DTL's comparison
    ({"name": "prefix"}, 184_320),
    ({"name": "mtlora"}, 10_066_176),
    ({"name": "polyhistor"}, 3_395_360),
    ({"name": "polyhistor", "lite": True, "ratio": 32}, 3_294_832),
    ({"name": "linear"}, 0),
    ({"name": "full"}, 85_798_656),
    ({"name": "bitfit"}, 102_912),
    ({"name": "layernorm"}, 38_400),
    ({"name": "partial"}, 7_089_408),
    ({"name": "vpt", "deep": False}, 38_400),
    ({"name": "vpt"}, 460_800),
    ({"name": "adaptformer"}, 1_189_632),
    ({"name": "adaptformer", "bottleneck": 8}, 156_768),
    ({"name": "houlsby"}, 313_536),
    ({"name": "pfeiffer"}, 156_768),
    ({"name": "adapter_plus"}, 165_984),
    ({"name": "parallel"}, 304_320),
    ({"name": "parallel", "bottleneck": 8}, 156_768),
    ({"name": "compacter"}, 57_088),
    ({"name": "lora"}, 294_912),
    ({"name": "lora", "targets": ["qkv"], "shared_a": True}, 294_912),
    ({"name": "lora_fa"}, 147_456),
    ({"name": "dora"}, 313_344),
    ({"name": "adalora"}, 442_656),
    ({"name": "bi_adapter"}, 589_824),
    ({"name": "fishmask"}, 425_280),
    ({"name": "convpass"}, 327_552),
    ({"name": "convpass", "attention_only": True}, 163_776),
    ({"name": "fact_tt"}, 61_440),
    ({"name": "fact_tk"}, 86_528),
    ({"name": "ssf"}, 205_824),
    ({"name": "ia3"}, 55_296),
    ({"name": "difffit"}, 140_544),
    ({"name": "rein"}, 1_347_841),
    ({"name": "repadapter"}, 239_808),
    ({"name": "repadapter", "mlp": False}, 119_904),
    ({"name": "krona"}, 38_400),
    ({"name": "lion"}, 100_416),
    ({"name": "noah"}, 654_456),
    ({"name": "noah", **NOAH_CIFAR100}, 320_330),
    ({"name": "vp"}, 69_840),
    ({"name": "evp"}, 150_528),  # 69,840 of them ever change
    ({"name": "ilm_vp"}, 150_528),
    ({"name": "dam_vp", "prompts": 1}, 69_840),
    ({"name": "lorand"}, 1_809_408),
    ({"name": "mona"}, 2_684_928),
]


@dataclass(frozen=True)
class Shape:
    """Of a plain timm ViT: d, L, patch, hidden width of the MLP, image side."""

    dim: int
    depth: int
    patch: int
    hidden: int
    side: int


SHAPES = [Shape(64, 3, 8, 256, 32), Shape(48, 2, 16, 96, 64), Shape(96, 5, 14, 288, 56)]


def ladder(s: Shape, w: int, m: int) -> int:
    block = 4 * w**2 + 2 * w * m + 9 * w + m + 1
    return s.depth * block + (s.depth + 1) * (s.dim + 1) * w + 2 * w + (w + 1) * s.dim


# The formula in each method's docstring, at an entry of that method.
FORMULAS: list[tuple[dict[str, Any], Callable[[Shape], int]]] = [
    ({"name": "vqt", "queries": 3, "weighted": True}, lambda s: s.depth * 3 * (s.dim + 1)),
    ({"name": "dtl", "rank": 3, "kernel": 5}, lambda s: 6 * s.depth * s.dim + 25 * s.dim),
    ({"name": "lst"}, lambda s: ladder(s, s.dim // 8, s.hidden // 8)),
    ({"name": "prefix", "prefixes": 3}, lambda s: 6 * s.depth * s.dim),
    (
        {"name": "mtlora", "rank": 3},
        lambda s: (
            s.depth * 3 * (6 * s.dim + 2 * (s.dim + s.hidden))
            + 2 * s.dim * (2 * s.depth + 1)
            + s.dim * (3 * s.patch**2 + 1)
        ),
    ),
    (
        {"name": "polyhistor", "ratio": 8, "rank": 3, "embedding": 10},
        lambda s: 5 * (1 + 2 * s.depth) + 2 * 3 * 11 * (s.dim + s.dim // 8),
    ),
    (
        {"name": "polyhistor", "lite": True, "ratio": 8, "rank": 3, "embedding": 10},
        lambda s: 10 + 2 * 3 * 11 * (s.dim + s.dim // 8) + 4 * s.depth,
    ),
    ({"name": "linear"}, lambda s: 0),
    ({"name": "vpt", "prompts": 7}, lambda s: s.depth * 7 * s.dim),
    ({"name": "vpt", "prompts": 7, "deep": False}, lambda s: 7 * s.dim),
    ({"name": "adaptformer", "bottleneck": 5}, lambda s: s.depth * (2 * s.dim * 5 + 5 + s.dim)),
    ({"name": "houlsby", "bottleneck": 5}, lambda s: 2 * s.depth * (2 * s.dim * 5 + 5 + s.dim)),
    ({"name": "pfeiffer", "bottleneck": 5}, lambda s: s.depth * (2 * s.dim * 5 + 5 + s.dim)),
    ({"name": "pfeiffer", "bottleneck": 5, "norm": True}, lambda s: s.depth * (2 * s.dim * 5 + 5 + 3 * s.dim)),
    ({"name": "adapter_plus", "bottleneck": 5}, lambda s: s.depth * (2 * s.dim * 5 + 5 + 2 * s.dim)),
    ({"name": "parallel", "bottleneck": 5}, lambda s: s.depth * (2 * s.dim * 5 + 5 + s.dim)),
    ({"name": "parallel", "bottleneck": 5, "attention": True}, lambda s: 2 * s.depth * (2 * s.dim * 5 + 5 + s.dim)),
    (
        {"name": "compacter", "bottleneck": 12, "products": 4, "rank": 2},
        lambda s: 4**3 + 2 * s.depth * 5 * (s.dim + 12),
    ),
    (
        {"name": "compacter", "bottleneck": 12, "attention": False},
        lambda s: 4**3 + s.depth * 3 * (s.dim + 12),
    ),
    ({"name": "lora", "rank": 3, "targets": ["fc1", "fc2"]}, lambda s: s.depth * 2 * 3 * (s.dim + s.hidden)),
    ({"name": "lion", "rank": 5}, lambda s: 2 * 5 * (2 * s.dim + 5 + 1)),
    (
        {"name": "noah", "prompts": 7, "lora": 3, "adapter": 5},
        lambda s: s.depth * (s.dim * (7 + 4 * 3 + 2 * 5 + 1) + 5),
    ),
    ({"name": "layernorm"}, lambda s: 2 * s.dim * (2 * s.depth + 1)),
    ({"name": "lora_fa", "rank": 3, "targets": ["qkv", "fc1"]}, lambda s: s.depth * 3 * (3 * s.dim + s.hidden)),
    (
        {"name": "dora", "rank": 3, "targets": ["q", "fc2"]},
        lambda s: s.depth * (3 * (3 * s.dim + s.hidden) + 2 * s.dim),
    ),
    (
        {"name": "adalora", "rank": 3, "target_rank": 2, "targets": ["v", "fc1"]},
        lambda s: s.depth * 3 * (3 * s.dim + s.hidden + 2),
    ),
    ({"name": "bi_adapter", "bottleneck": 5}, lambda s: 2 * s.depth * s.dim * 5),
    (
        {"name": "fishmask", "share": 0.25},
        lambda s: (s.dim * (2 + s.depth * (4 * s.dim + 9 + 2 * s.hidden)) + s.depth * s.hidden) // 4,
    ),
    ({"name": "bitfit"}, lambda s: s.dim * (2 + s.depth * 7) + s.depth * s.hidden),
    (
        {"name": "convpass", "bottleneck": 5},
        lambda s: 2 * s.depth * (2 * s.dim * 5 + 9 * 5**2 + 2 * 5 + s.dim),
    ),
    (
        {"name": "fact_tt", "rank": 3},
        lambda s: 2 * s.dim * 3 + s.depth * (4 + 2 * s.hidden // s.dim) * 3**2,
    ),
    (
        {"name": "fact_tk", "rank": 3},
        lambda s: 2 * s.dim * 3 + 3**3 + s.depth * (4 + 2 * s.hidden // s.dim) * 3,
    ),
    ({"name": "ssf"}, lambda s: 4 * s.dim + s.depth * (14 * s.dim + 2 * s.hidden)),
    ({"name": "ia3"}, lambda s: s.depth * (2 * s.dim + s.hidden)),
    ({"name": "difffit"}, lambda s: s.dim * (11 * s.depth + 3) + s.depth * s.hidden),
    (
        {"name": "rein", "tokens": 7, "rank": 3},
        lambda s: s.depth * 3 * (7 + s.dim) + 2 * s.dim * (s.dim + 1) + 1,
    ),
    (
        {"name": "rein", "tokens": 7, "rank": None},
        lambda s: s.depth * 7 * s.dim + 2 * s.dim * (s.dim + 1) + 1,
    ),
    (
        {"name": "repadapter", "bottleneck": 12, "groups": 4},
        lambda s: 2 * s.depth * (12 * s.dim + 12 + 3 * s.dim + s.dim),
    ),
    ({"name": "krona", "factor": 4}, lambda s: 2 * s.depth * (4 * 4 + (s.dim // 4) ** 2)),
    (
        {"name": "lorand", "branches": 3, "kernel": 5, "factor": 4},
        lambda s: 2 * s.depth * (2 * 3 * (5 * (s.dim + s.dim // 4) + 5**2) + s.dim + s.dim // 4),
    ),
    (
        {"name": "lorand", "branches": 2, "shared_kernel": True},
        lambda s: 2 * s.depth * (2 * 2 * 8 * (s.dim + s.dim // 2) + 2 * 8**2 + s.dim + s.dim // 2),
    ),
    (
        {"name": "mona", "bottleneck": 12},
        lambda s: 2 * s.depth * (s.dim * (2 * 12 + 5) + 12**2 + 88 * 12),
    ),
    ({"name": "vp", "size": 5}, lambda s: 6 * 5 * (2 * s.side - 10)),
    ({"name": "vp", "kind": "fixed_patch", "size": 5}, lambda s: 3 * 5**2),
    ({"name": "evp", "size": 5}, lambda s: 3 * s.side**2),
    ({"name": "ilm_vp", "inner": 20}, lambda s: 3 * s.side**2),
    ({"name": "dam_vp", "prompts": 4, "size": 5}, lambda s: 4 * 6 * 5 * (2 * s.side - 10)),
]
