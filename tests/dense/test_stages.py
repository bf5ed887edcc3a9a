"""The neck `stages`: one normalised map after every stage, of any Swin, with the methods that act in its blocks."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.zoo import CASES, backbone, image, shake
from vpeft.backbones import wrap
from vpeft.backbones.weights import Weights
from vpeft.dense.stages import Stages
from vpeft.methods import build
from vpeft.tuned import Tuned


class Dense(nn.Module):
    """A neck on a tuned backbone."""

    def __init__(self, spec: dict) -> None:
        super().__init__()
        body = backbone("timm_swin")
        self.neck = Stages(body)
        self.tuned = Tuned(body, build(spec, body), nn.Identity()).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.neck(self.tuned.backbone, images)


def test_maps_are_those_of_the_stages_each_through_its_own_norm():
    body, seen = backbone("timm_swin"), []
    neck = Stages(body)
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)
    with torch.no_grad():
        neck.norms[1].weight.fill_(3.0)
        first, second = neck(body, image())
    assert (neck.channels, neck.strides) == ([32, 64], [4, 8])
    assert first.shape == (2, 32, 16, 16)
    assert second.shape == (2, 64, 8, 8)
    assert first.is_contiguous()
    torch.testing.assert_close(first, nn.functional.layer_norm(seen[1], (32,)).movedim(-1, 1))
    torch.testing.assert_close(second, 3 * nn.functional.layer_norm(seen[3], (64,)).movedim(-1, 1))


def test_norms_are_frozen_unless_asked_for():
    assert not [p for p in Stages(backbone("timm_swin")).parameters() if p.requires_grad]
    counts = [
        sum(p.numel() for p in Stages(backbone("timm_swin"), norms=norms).parameters() if p.requires_grad)
        for norms in ("bias", "all")
    ]
    assert counts == [32 + 64, 2 * (32 + 64)]


def test_a_plain_vit_has_no_stages():
    with pytest.raises(ValueError, match=r"those of timm_vit are all 32 wide. Take a Swin, or the neck 'layers'"):
        Stages(backbone("timm_vit"))


def test_position_tables_learn_with_the_biases_if_asked_to():
    model = Dense({"name": "bitfit", "position_tables": True})
    sum((m * torch.randn_like(m)).mean() for m in model(image())).backward()  # type: ignore[union-attr]
    tables = [p for name, p in model.tuned.trainable() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    assert all(p.grad is not None and p.grad.any() for p in tables)


@pytest.mark.parametrize("method", ["mona", "lorand", "vpt_deep", "lora_qv"])
def test_compiles_without_graph_breaks(method):
    torch._dynamo.reset()
    model = Dense(CASES[method].spec)
    shake(model.tuned)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-4)


def test_prompts_that_travel_with_a_map_stay_out_of_it():
    first, second = Dense({"name": "vpt", "prompts": 3})(image())
    assert (first.shape[2:], second.shape[2:]) == ((16, 16), (8, 8))


# Trained parameters of the backbone, as the official codes count them and the tables round them.
SMALL = {"name": "lorand", "branches": 2, "shared_kernel": True}
COUNTS = [
    ("tiny", SMALL, 440_256),
    ("small", SMALL, 899_520),
    ("base", SMALL, 1_197_312),
    ("large", SMALL, 1_792_896),
    ("base", {"name": "lorand"}, 2_370_816),
    ("large", {"name": "lorand"}, 3_543_936),
    ("base", {"name": "mona"}, 3_667_456),
    ("large", {"name": "mona"}, 5_267_712),
    ("base", {"name": "lora", "rank": 64, "alpha": 1.0}, 3_080_192),
    ("base", {"name": "parallel", "bottleneck": 64}, 1_553_664),
    ("base", {"name": "adaptformer", "bottleneck": 64}, 1_553_664),
    ("base", {"name": "houlsby", "bottleneck": 64}, 3_107_328),
    ("large", {"name": "parallel", "bottleneck": 64}, 2_329_728),
    ("large", {"name": "houlsby", "bottleneck": 64}, 4_659_456),
    ("base", {"name": "vpt", "prompts": 10, "deep": False}, 1_280),
    ("base", {"name": "vpt", "prompts": 10}, 120_320),
]


# With the norms of the stages, which these train: 0.30, 0.09 and 28.3 M on Swin-L in Mona's table.
WITH_NORMS = [
    ({"name": "bitfit", "position_tables": True}, "bias", 302_484),
    ({"name": "layernorm"}, "all", 89_088),
    ({"name": "partial"}, "frozen", 28_339_632),
]


def count(size: str, spec: dict, norms: Any = "frozen") -> int:
    with torch.device("meta"):
        body = wrap(
            timm.create_model(f"swin_{size}_patch4_window7_224", num_classes=0),
            weights=Weights("random", "meta", ""),
        )
        neck = Stages(body, norms)
        tuned = Tuned(body, build(spec, body), nn.Identity())
    assert neck.strides == [4, 8, 16, 32]
    return sum(p.numel() for p in [*neck.parameters(), *tuned.parameters()] if p.requires_grad)


@pytest.mark.parametrize(("size", "spec", "published"), COUNTS, ids=str)
def test_counts_on_swin_are_the_published_ones(size, spec, published):
    assert count(size, spec) == published


@pytest.mark.parametrize(("spec", "norms", "published"), WITH_NORMS, ids=str)
def test_counts_with_norms_are_the_published_ones(spec, norms, published):
    assert count("large", spec, norms) == published
