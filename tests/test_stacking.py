"""Any two methods on one backbone: they work together, or are refused by name."""

import itertools

import pytest
import torch

from tests.zoo import CASES, REFUSED, backbone, image, shake, tuned

# one setting of every method, the first structural one where there is one
FIRST: dict[str, str] = {}
for name, case in sorted(CASES.items(), key=lambda item: not item[1].structural):
    FIRST.setdefault(case.spec["name"], name)
MAIN = list(FIRST.values())
PAIRS = list(itertools.permutations(MAIN, 2))
BODIES = ["timm_registers", "timm_swin"]


@pytest.mark.parametrize("body", BODIES)
def test_two_methods_learn_together_or_are_refused_by_name(body):
    for first, second in PAIRS:
        if {(body, first), (body, second)} & set(REFUSED):
            continue
        try:
            model = shake(tuned(body, first, second), 0.05)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert all(CASES[name].spec["name"] in refusal for name in (first, second)), (first, second, refusal)
            continue
        model(image()).square().sum().backward()
        unseen = [name for name, p in model.trainable() if p.grad is None]
        assert not unseen, (first, second, unseen)


@pytest.mark.parametrize("body", ["timm_vit", "open_clip"])
def test_two_mergeable_methods_merge_as_they_train(body):
    for first, second in itertools.permutations([name for name in MAIN if CASES[name].merges], 2):
        try:
            model = shake(tuned(body, first, second), 0.05)
        except ValueError:
            continue  # refused by name, as the test above sees
        plain = backbone(body)
        plain.model.load_state_dict(model.merge(), strict=True)
        with torch.no_grad():
            difference = (plain(image()) - model.backbone(image())).abs().max().item()
        assert difference < 2e-5, (first, second, difference)
