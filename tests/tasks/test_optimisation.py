import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.zoo import tuned
from vpeft.config import OptimConfig
from vpeft.tasks.optimisation import learning_rates, optimizer, parameter_groups, schedule


def vpt_per_epoch(epoch, warmup=10, epochs=100):
    """The published schedule: constant within an epoch, 0 in the first."""
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


@pytest.mark.parametrize("epoch", [0, 1, 5, 9, 10, 11, 50, 99])
def test_vpt_recipe_at_the_start_of_every_epoch(epoch):
    steps = 16
    ours = schedule(epoch * steps, 100 * steps, 10 * steps)
    first_step = 1 / (10 * steps) if epoch < 10 else 0  # ours does not waste the first step on a rate of 0
    assert ours == pytest.approx(vpt_per_epoch(epoch) + first_step, abs=1e-9)


def test_rises_to_the_peak_and_falls_to_the_floor():
    values = [schedule(step, 1000, 100, floor=0.01) for step in range(1000)]
    assert values[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert values[99] == values[100] == 1
    assert all(a > b for a, b in pairwise(values[100:]))
    assert values[-1] == pytest.approx(0.01, abs=1e-5)


def test_stays_at_the_floor_after_the_last_step():
    assert schedule(1000, 1000, 100, floor=0.2) == schedule(2000, 1000, 100, floor=0.2) == pytest.approx(0.2)


def test_without_warmup_it_starts_at_the_peak():
    assert schedule(0, 10, 0) == 1


def named(*shapes):
    return [(f"p{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]


def shapes(group):
    return [tuple(parameter.shape) for parameter in group["params"]]


def test_groups_have_their_own_rates_and_vectors_no_decay():
    owned = {"method": named((4, 3), (3,)), "backbone": named((5,)), "head": named((2, 3), (2,))}
    optim = OptimConfig(lr=0.1, weight_decay=0.5, head_lr=0.01, head_weight_decay=0.05)
    groups = {group["name"]: group for group in parameter_groups(owned, optim)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "method": (0.1, 0.5),
        "method_undecayed": (0.1, 0.0),
        "head": (0.01, 0.05),
        "head_undecayed": (0.01, 0.0),
    }
    assert shapes(groups["method_undecayed"]) == [(3,), (5,)]
    assert learning_rates(optimizer(list(groups.values()), optim)) == {"method": 0.1, "head": 0.01}


def test_vectors_decay_when_asked_and_the_head_follows_the_method():
    owned = {"method": named((4, 3), (3,)), "backbone": [], "head": named((2,))}
    groups = parameter_groups(owned, OptimConfig(lr=0.1, weight_decay=0.5, decay_vectors=True))
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("method", 0.1, 0.5),
        ("head", 0.1, 0.5),
    ]


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="There is nothing to train"):
        parameter_groups({"method": [], "backbone": [], "head": []}, OptimConfig())


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimisers(name, kind):
    built = optimizer([{"name": "head", "params": [nn.Parameter(torch.zeros(2))], "lr": 0.1}], OptimConfig(name=name))
    assert isinstance(built, kind)
    assert built.defaults.get("momentum", 0.9) == 0.9


def test_one_kernel_takes_the_steps_of_many():
    start = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    for parameter, fused in zip(parameters, (False, True), strict=True):
        built = optimizer([{"params": [parameter], "lr": 0.1, "weight_decay": 0.2}], OptimConfig(), fused)
        for step in range(20):
            parameter.grad = torch.randn(50, 4, generator=torch.Generator().manual_seed(step))
            built.step()
    assert not torch.equal(parameters[0], start)
    torch.testing.assert_close(parameters[1], parameters[0], rtol=1e-5, atol=1e-6)


def test_poly_is_a_power_of_what_is_left():
    values = [schedule(step, 100, 10, floor=0.0, power=0.9) for step in range(100)]
    assert values[9] == values[10] == 1
    assert values[55] == pytest.approx((1 - 45 / 90) ** 0.9)
    straight = [schedule(step, 100, 0, power=1.0) for step in range(100)]
    assert straight == pytest.approx([1 - step / 100 for step in range(100)])


def test_layer_decay_lowers_the_rate_once_a_block_below_the_last_norm():
    model = tuned("timm_vit", "full")
    optim = OptimConfig(lr=0.1, layer_decay=0.5)
    groups = {group["name"]: group for group in parameter_groups(model.parameter_groups(), optim, model.levels())}
    vit = model.backbone.model
    rate = {id(p): group["lr"] for group in groups.values() for p in group["params"]}
    assert rate[id(vit.norm.weight)] == 0.1  # two blocks: levels 0 to 3
    assert rate[id(vit.blocks[1].mlp.fc1.weight)] == 0.05
    assert rate[id(vit.blocks[0].norm1.bias)] == 0.025
    assert rate[id(vit.pos_embed)] == rate[id(vit.patch_embed.proj.weight)] == 0.0125
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.trainable()))
