"""DAM-VP's frozen head: the features that vary most are the logits."""

import pytest
import torch

from tests.zoo import backbone, tuned
from vpeft import heads
from vpeft.heads.active_features import most_active
from vpeft.methods import build
from vpeft.tuned import Tuned


def test_the_features_that_vary_most_over_noise_are_the_logits_in_ascending_order():
    body = backbone("timm_vit")
    model = Tuned(
        body, build({"name": "vp", "size": 5}, body), heads.build({"kind": "active_features"}, body, 32, "abcd")
    )
    model.head.prepare(model, [], 0)
    noise = torch.randn(8, 64, 3, 64, 64, generator=torch.Generator().manual_seed(2023))  # as if drawn in one go
    generator = torch.Generator().manual_seed(2023)
    noise = torch.cat([torch.randn(64, 3, 64, 64, generator=generator) for _ in range(8)])
    with torch.no_grad():
        deviation = backbone("timm_vit")(noise).std(dim=0, correction=0)
    wanted = sorted(deviation.topk(4).indices.tolist())
    assert model.head.index.tolist() == wanted
    features = torch.randn(2, 32)
    assert torch.equal(model.head(features), features[:, wanted])
    model.head.index.zero_()
    model.head.prepare(model, [], 1)
    assert not model.head.index.any()


def test_it_chooses_by_the_backbone_without_prompts():
    assert torch.equal(most_active(tuned("timm_vit", "vp").backbone, 5), most_active(backbone("timm_vit"), 5))


def test_more_classes_than_features_are_refused():
    with pytest.raises(ValueError, match="active_features: 33 classes cannot each have one of 32 features"):
        heads.build({"kind": "active_features"}, backbone("timm_vit"), 32, [str(i) for i in range(33)])
