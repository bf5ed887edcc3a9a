"""Stacked methods merge to what they train, whichever comes first in the list."""

import pytest
import torch
from torch import nn

from tests.zoo import backbone, image, shake, tuned
from vpeft.methods import build
from vpeft.tuned import Tuned


@pytest.mark.parametrize("outside", ["difffit", "repadapter"])
@pytest.mark.parametrize("inside", ["fishmask", "dora", "lora_all", "adalora"])
@pytest.mark.parametrize("outside_first", [True, False])
def test_what_multiplies_a_map_from_outside_merges_around_what_is_inside(outside, inside, outside_first):
    model = shake(tuned("timm_vit", *((outside, inside) if outside_first else (inside, outside))), 0.05)
    plain = backbone("timm_vit")
    plain.model.load_state_dict(model.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=1e-5)


def test_a_refusal_in_a_list_names_the_list():
    with pytest.raises(ValueError, match=r"^dora: .* The methods are lora, dora, attached in this order\.$"):
        tuned("timm_vit", "lora_qv", "dora")


def stacked(name: str, *specs: dict) -> Tuned:
    body = backbone(name)
    torch.manual_seed(1)
    return shake(Tuned(body, build(list(specs), body), nn.Identity()).eval(), 0.05)


@pytest.mark.parametrize("body", ["timm_vit", "open_clip"])
@pytest.mark.parametrize("ia3_first", [True, False])
@pytest.mark.parametrize("name", ["lora", "lora_fa", "dora", "krona", "adalora", "fact_tt", "fact_tk", "repadapter"])
def test_what_changes_fc2_reads_what_ia3_scales_and_merges_so(body, name, ia3_first):
    targets = ["fc2"] if name == "dora" else ["q", "fc2"]  # dora refuses a map that another method changes
    options = {"dropout": 0.0} if name in ("fact_tt", "fact_tk", "repadapter") else {"targets": targets}
    specs = [{"name": "ia3"}, {"name": name, **options}]
    model, plain = stacked(body, *(specs if ia3_first else reversed(specs))), backbone(body)
    plain.model.load_state_dict(model.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["ia3", "repadapter", "difffit", "lora", "krona"])
def test_two_of_a_kind_merge_as_they_train(name):
    model, plain = stacked("timm_vit", {"name": name}, {"name": name}), backbone("timm_vit")
    plain.model.load_state_dict(model.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=2e-5)


def test_two_ssf_are_refused():
    with pytest.raises(ValueError, match=r"^ssf: another ssf .* Use one\."):
        stacked("timm_vit", {"name": "ssf"}, {"name": "ssf"})


@pytest.mark.parametrize("other", ["bitfit", "full", "partial", "layernorm", "difffit"])
def test_what_trains_the_backbone_is_found_whatever_changes_its_tensors_before(other):
    names = [
        set(tuned("open_clip", *pair).parameter_groups()["backbone"])
        for pair in (("lora_qv", other), (other, "lora_qv"))
    ]
    shapes = [sorted(tuple(p.shape) for _, p in one) for one in names]
    assert shapes[0] == shapes[1] != []
