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


def stacked(*specs: dict) -> Tuned:
    body = backbone("timm_vit")
    torch.manual_seed(1)
    return shake(Tuned(body, build(list(specs), body), nn.Identity()).eval(), 0.05)


@pytest.mark.parametrize("name", ["lora", "lora_fa", "dora", "krona", "adalora"])
def test_what_changes_fc2_inside_of_ia3_merges_when_ia3_is_last_and_is_refused_when_it_is_first(name):
    other = {"name": name, "targets": ["q", "fc2"]}
    model, plain = stacked(other, {"name": "ia3"}), backbone("timm_vit")
    plain.model.load_state_dict(model.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=1e-5)
    if name == "dora":  # it refuses a map that another method changes, and q is in the one of k and v
        other["targets"] = ["fc2"]
    with pytest.raises(ValueError, match=r"^ia3: \w+, attached later, changes an fc2 .* Put ia3 last"):
        stacked({"name": "ia3"}, other).merge()


@pytest.mark.parametrize(("name", "options"), [("lora", {}), ("ssf", {"init_std": 0.1})])
def test_what_leaves_fc2_alone_or_scales_its_rows_merges_after_ia3(name, options):
    model, plain = stacked({"name": "ia3"}, {"name": name, **options}), backbone("timm_vit")
    plain.model.load_state_dict(model.merge(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ssf", "repadapter"])
def test_two_of_a_kind_that_would_not_merge_as_they_train_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: another {name} .* Use one\."):
        stacked({"name": name}, {"name": name})
