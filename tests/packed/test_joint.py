"""Features, gradients and random draws of several models at once are those of each alone."""

import dataclasses

import pytest
import torch

from tests import zoo
from vpeft.heads import LinearHead
from vpeft.methods import METHODS, build, feature_dim
from vpeft.packed import NOT_PACKED, packable
from vpeft.packed.joint import Generators, features
from vpeft.packed.sharing import own_adopted, twin
from vpeft.tuned import Tuned

CPU = torch.device("cpu")
# Cases whose own dropout is off, with it on.
DROPS = {"dora": {"dropout": 0.3}, "lora_qv": {"dropout": 0.3}, "vpt_deep": {"dropout": 0.3}, "vqt": {"dropout": 0.3}}
REFUSED = {name for name, case in zoo.CASES.items() if case.spec["name"] in NOT_PACKED} | {"vp_random_patch"}
PACKED = [name for name in zoo.CASES if name not in REFUSED]
OTHERS = [
    (family, case)
    for family in zoo.MODELS
    for case in ("convpass", "vpt_deep", "lora_all", "bitfit", "prefix")
    if family != "timm_vit"
]


def models(family, case, count=3):
    """Of one seed each, with everything that learns randomised, in training mode."""
    spec = zoo.CASES[case].spec | (DROPS.get(case, {}) if family != "open_clip" else {})
    backbone, found = zoo.backbone(family), []
    for number in range(count):
        body = twin(backbone)
        built = build([spec], body)
        found.append(Tuned(body, built, LinearHead(feature_dim(body, built), 2 + number), drop_path=0.3))
        own_adopted(found[-1])
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for _, parameter in found[-1].trainable():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        found[-1].train()
    return found


def images(number):
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(10 + number))


def seeded(number):
    torch.manual_seed(number)
    return Generators.now(CPU)


def score(y):
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


def gradients(model):
    return {name: p.grad for name, p in model.trainable() if p.grad is not None}


def assert_as_alone(found):
    expected, drawn = [], []
    for number, model in enumerate(found):
        torch.manual_seed(number)
        y = model.backbone(images(number))
        drawn.append(torch.get_rng_state())
        if y.requires_grad:
            score(y).backward()
        expected.append((y.detach(), gradients(model)))
        model.zero_grad()
    generators = [seeded(number) for number in range(len(found))]
    together = features(found, [images(number) for number in range(len(found))], generators)
    if together.requires_grad:
        sum(score(y) for y in together).backward()
    for number, (model, (y, grads)) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(together[number], y, rtol=1e-5, atol=1e-5)
        ours = gradients(model)
        assert set(ours) == set(grads)
        for name, grad in grads.items():
            scale = max(1.0, float(grad.abs().max()))
            assert float((ours[name] - grad).abs().max()) < 1e-5 * scale, name
        assert torch.equal(generators[number].cpu, drawn[number]), "it drew as much as alone"


@pytest.mark.parametrize("case", PACKED)
def test_a_method_is_as_alone(case):
    assert_as_alone(models("timm_vit", case))


@pytest.mark.parametrize(("family", "case"), OTHERS)
def test_a_family_is_as_alone(family, case):
    assert_as_alone(models(family, case))


def test_every_method_is_tried_or_refused():
    tried = {zoo.CASES[case].spec["name"] for case in PACKED}
    assert set(packable()) == set(METHODS)
    assert {name for name, why in packable().items() if why is None} == tried
    assert not tried & set(NOT_PACKED)


def test_dropout_differs_between_members():
    one, other = models("timm_vit", "lora_shared", 2)
    other.load_delta(
        {name: value for name, value in one.delta().items() if not name.startswith("head.")}
        | {name: value for name, value in other.delta().items() if name.startswith("head.")}
    )
    same = [images(0), images(0)]
    first, second = features([one, other], same, [seeded(0), seeded(1)])
    assert not torch.allclose(first, second)
    first, second = features([one, other], same, [seeded(1), seeded(1)])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_evaluation_is_as_alone():
    found = [model.eval() for model in models("timm_vit", "noah")]
    with torch.inference_mode():
        expected = [model.backbone(images(number)) for number, model in enumerate(found)]
        together = features(found, [images(number) for number in range(3)], [seeded(0)] * 3)
    torch.testing.assert_close(list(together), expected, rtol=1e-5, atol=1e-5)


def test_bf16_is_as_alone():
    found = models("timm_vit", "vpt_deep")
    with torch.autocast("cpu", torch.bfloat16):
        expected = []
        for number, model in enumerate(found):
            torch.manual_seed(number)
            expected.append(model.backbone(images(number)))
        together = features(found, [images(number) for number in range(3)], [seeded(number) for number in range(3)])
    assert together.dtype == expected[0].dtype
    torch.testing.assert_close(list(together), expected, rtol=2e-2, atol=2e-2)  # bf16 has 8 bits


def test_another_draw_at_random_is_not_taken_for_every_member_alike():
    found = models("timm_vit", "vp_random_patch", 2)
    with pytest.raises(RuntimeError, match="random operation"):
        features(found, [images(0), images(1)], [seeded(0), seeded(1)])


def test_twins_share_what_is_frozen_and_nothing_that_is_trained():
    one, other = models("timm_vit", "bitfit", 2)
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    for name, parameter in ours.items():
        assert (theirs[name] is parameter) == (not parameter.requires_grad), name
    hooks = [sum(len(module._forward_hooks) for module in model.modules()) for model in (one, other)]
    assert hooks[0] == hooks[1]


def test_the_dataclass_of_generators_has_the_state_of_torch():
    generators = seeded(3)
    with generators.use():
        first = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(2))
    before = dataclasses.replace(generators).cpu
    torch.rand(5)
    with generators.use():
        second = torch.rand(2)
    torch.set_rng_state(before)
    assert torch.equal(second, torch.rand(2))
