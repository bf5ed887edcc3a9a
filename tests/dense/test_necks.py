"""Every method under every neck: all of it learns, or it is refused by name."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo import CASES, REFUSED, backbone, image
from vpeft.dense.necks import NECKS
from vpeft.methods import build
from vpeft.tuned import Tuned

# In vit_adapter the patches alone enter the blocks; what its full tuning trains it names itself.
SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("timm_registers", "last", {}),
    ("timm_registers", "layers", {"layers": [0]}),
    ("timm_swin", "stages", {}),
    ("timm_registers", "vit_adapter", {"interactions": 2, "vit_features": False, "heads": 2, "regime": "injector"}),
]
PAST_THE_BLOCKS = {"vqt", "vqt_weighted", "dtl", "dtl_plus", "lst", "lst_residual", "lion"}
LEARNING = [name for name in CASES if name not in PAST_THE_BLOCKS and name != "linear"]


def model(body: str, neck: str, options: dict[str, Any], method: str) -> Tuned:
    built = backbone(body)
    maps = NECKS[neck](built, **options)
    torch.manual_seed(1)
    spec = {**CASES[method].spec, **({"first": 0} if method.startswith("dtl") else {})}
    return Tuned(built, build(spec, built), nn.Identity(), neck=maps).eval()


@pytest.mark.parametrize(("body", "neck", "options"), SETTINGS, ids=[setting[1] for setting in SETTINGS])
@pytest.mark.parametrize("method", LEARNING)
def test_a_gradient_reaches_all_that_a_method_trains(body, neck, options, method):
    if (body, method) in REFUSED or (neck, method) == ("vit_adapter", "full"):
        return
    tuned = model(body, neck, options, method)
    trained = {name: p for name, p in tuned.trainable() if not name.startswith("neck.")}
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    reached: set[str] = set()
    for step in range(CASES[method].steps):
        optimiser.zero_grad()
        torch.manual_seed(step)
        torch.stack([(m * torch.randn_like(m)).mean() for m in tuned(image(step))]).sum().backward()
        reached |= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimiser.step()
    assert trained
    assert {name for name in trained if not re.search(CASES[method].unseen, name)} <= reached


@pytest.mark.parametrize(("body", "neck", "options"), SETTINGS, ids=[setting[1] for setting in SETTINGS])
@pytest.mark.parametrize("method", sorted(PAST_THE_BLOCKS))
def test_what_acts_on_features_is_refused_by_name(body, neck, options, method):
    name = CASES[method].spec["name"]
    if (body, method) in REFUSED:
        return
    with pytest.raises(ValueError, match=f"^{name} changes what is read from the last block as features, which a neck"):
        model(body, neck, options, method)
