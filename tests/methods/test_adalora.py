"""AdaLoRA against Hugging Face peft, step by step; its budget, its adapter, and a run in two halves."""

import copy

import pytest
import torch

from tests.zoo import backbone, image, shake, tuned
from vpeft.methods import build

STEPS = 20
SPEC = {"name": "adalora", "rank": 6, "target_rank": 3, "targets": ["qkv", "fc1"], "warmup": 0.2, "final": 0.25}


def adalora(**options):
    body = backbone("timm_vit")
    (method,) = build({**SPEC, "alpha": 9.0, "interval": 2, **options}, body)
    method.attach(body)
    body.requires_grad_(False)
    return body, method.requires_grad_(True)


def test_training_equals_pefts():
    from peft import AdaLoraConfig, get_peft_model

    body, method = adalora(orthogonality=0.5)
    config = AdaLoraConfig(
        init_r=6,
        target_r=3,
        lora_alpha=9,
        tinit=4,
        tfinal=5,
        deltaT=2,
        total_step=STEPS,
        orth_reg_weight=0.5,
        target_modules=r"blocks\.\d+\.(attn\.qkv|mlp\.fc1)",
    )
    adapted = get_peft_model(backbone("timm_vit").model, config)
    allocator = adapted.base_model.rankallocator
    layers = [module for module in adapted.modules() if hasattr(module, "lora_E")]
    triples = [(one.lora_E["default"], one.lora_A["default"], one.lora_B["default"]) for one in layers]
    with torch.no_grad():
        for (_, q, p), (down, up) in zip(triples, method.pairs(), strict=True):
            q.copy_(down.q)
            p.copy_(up)
    ours = torch.optim.SGD(method.parameters(), lr=0.05)
    theirs = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    for step in range(STEPS):
        ours.zero_grad()
        theirs.zero_grad()
        out, wanted = body(image(step)), adapted(image(step))
        torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)
        grams = [gram for _, q, p in triples for gram in (q @ q.T, p.T @ p)]
        penalty = 0.5 * sum(torch.norm(gram - torch.eye(6)) for gram in grams) / len(grams)
        torch.testing.assert_close(method.penalty(), penalty)
        (out.square().mean() + method.penalty()).backward()
        (wanted.square().mean() + penalty).backward()
        for (e, q, p), (down, up) in zip(triples, method.pairs(), strict=True):
            for mine, other in ((down.scale.grad, e.grad.flatten()), (down.q.grad, q.grad), (up.grad, p.grad)):
                assert (mine - other).abs().max() <= 1e-4 * other.abs().max()
        ours.step()
        theirs.step()
        method.after_step(step, STEPS)
        budget, _ = allocator.budget_schedule(step)
        adapted.base_model.update_and_allocate(step)
        if step < STEPS - 5:
            assert method.budget(step, STEPS)[0] == budget
            sensitivity = torch.cat([allocator.exp_avg_ipt[name].flatten() for name in ordered(adapted)])
            assert (method.sensitivity - sensitivity).abs().max() <= 1e-4 * sensitivity.abs().max()
        kept = [(down.scale != 0).tolist() for down in method.down]
        if step <= STEPS - 5:  # peft masks only while it is told to; here the mask holds to the end
            assert kept == [(e != 0).flatten().tolist() for e, _, _ in triples], step
    assert sum(map(sum, kept)) == 3 * len(kept)


def ordered(adapted):
    """peft's names of lambda, Q and P in the order of our flat scores."""
    names = [name for name, _ in adapted.base_model.model.named_parameters() if "lora_" in name]
    layers = [name.replace("lora_E", "%s") for name in names if "lora_E" in name]
    return [layer % part for layer in layers for part in ("lora_E", "lora_A")] + [layer % "lora_B" for layer in layers]


def test_the_budget_falls_from_all_to_the_target_and_stays():
    _, method = adalora(interval=1)
    budgets = [method.budget(step, 100) for step in range(100)]
    assert budgets[:21] == [(method.total, False)] * 21
    assert [one for one, _ in budgets] == sorted((one for one, _ in budgets), reverse=True)
    assert budgets[75:] == [(method.target, True)] * 25
    middle = method.target + (method.total - method.target) * (1 - 10 / 55) ** 3
    assert budgets[30] == (int(middle), True)


def test_a_run_in_two_halves_equals_one_to_the_bit():
    def run(model, steps):
        optimiser = torch.optim.SGD([p for _, p in model.trainable()], lr=0.1)
        for step in steps:
            optimiser.zero_grad()
            (model(image(step)).square().mean() + model.methods[0].penalty()).backward()
            optimiser.step()
            model.methods[0].after_step(step, 40)

    once, first = tuned("timm_vit", "adalora"), tuned("timm_vit", "adalora")
    run(once, range(40))
    run(first, range(13))
    second = tuned("timm_vit", "adalora")
    second.load_delta(copy.deepcopy(first.delta()))
    run(second, range(13, 40))
    assert any(not down.scale.all() for down in once.methods[0].down)
    for name, tensor in once.delta().items():
        assert torch.equal(tensor, second.delta()[name]), name


def test_an_adapter_holds_the_triplets_in_use_and_no_others():
    model = shake(tuned("timm_vit", "adalora"))
    method = model.methods[0]
    with torch.no_grad():
        method.down[0].scale[1:3] = 0
        method.down[1].scale.zero_()
    packed = method.pack(method.state_dict())
    assert packed["down.0.q"].shape == (4, 32)
    assert packed["down.1.q"].shape == (0, 32)
    assert "sensitivity" not in packed
    before = model(image())
    method.load_state_dict(method.unpack(packed))
    assert torch.equal(model(image()), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rank": 6}, "rank is 6, target_rank 6"),
        ({"target_rank": 0}, "target_rank 0"),
        ({"targets": []}, r"targets \[\]"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"warmup": 0.5, "final": 0.5}, "warmup is 0.5 and final 0.5"),
        ({"final": 0.0}, "final 0.0"),
        ({"interval": 0}, "interval is 0"),
        ({"beta1": 1.0}, "beta1 1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^adalora: .*{message}"):
        adalora(**options)
