"""Stacked methods merge to what they train, whichever comes first in the list."""

import pytest
import torch

from tests.zoo import backbone, image, shake, tuned


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
