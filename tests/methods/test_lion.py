"""LION's equilibria against long unrolled iteration and finite differences; its lottery against its statement."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.runs import tiny_config, write_images
from tests.zoo import backbone, image, shake, tuned
from vpeft.config import to_yaml
from vpeft.methods import build
from vpeft.methods.lion import Implicit, equilibrium
from vpeft.run import train


def problem(norm=0.9):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return (w / w.norm() * norm).requires_grad_(), a.requires_grad_()


def test_the_equilibrium_solves_its_equation():
    w, a = problem()
    z = equilibrium(w, a, 400)
    torch.testing.assert_close(z, (z @ w.T + a).tanh(), rtol=1e-14, atol=1e-14)


def test_its_gradient_equals_that_of_a_long_unrolled_iteration():
    w, a = problem()
    cotangent = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    implicit = torch.autograd.grad((equilibrium(w, a, 400) * cotangent).sum(), (w, a))
    z = torch.zeros_like(a)
    for _ in range(400):
        z = (z @ w.T + a).tanh()
    unrolled = torch.autograd.grad((z * cotangent).sum(), (w, a))
    torch.testing.assert_close(implicit, unrolled, rtol=1e-12, atol=1e-12)


def test_its_gradient_equals_finite_differences():
    w, a = problem()
    assert torch.autograd.gradcheck(lambda w, a: equilibrium(w, a, 400), (w, a), eps=1e-6, atol=1e-8)


def test_the_gradient_of_a_whole_layer_equals_finite_differences():
    torch.manual_seed(0)
    layer = Implicit(dim=5, rank=3, contraction=0.5, iterations=60).double()
    with torch.no_grad():
        layer.w.mul_(20)  # above the bound, so that W' is not W
        layer.v.normal_()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *layer.parameters()), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize(("contraction", "expected"), [(0.1, 5), (0.5, 15), (0.95, 238)])
def test_the_tolerance_holds_for_the_number_of_iterations_it_chooses(contraction, expected):
    spec = {"name": "lion", "rank": 6, "contraction": contraction, "tolerance": 1e-4}
    (method,) = build(spec, backbone("timm_vit"))
    iterations = next(iter(method.layers)).iterations
    assert iterations == expected
    w, a = torch.zeros(2, 2, dtype=torch.float64), torch.full((1, 2), 1e-3, dtype=torch.float64)
    w[0, 0] = contraction  # the slowest case: a small z, whose tanh is itself
    error = (equilibrium(w, a, iterations) - equilibrium(w, a, 4000)).norm() / a.tanh().norm()
    assert error < 1e-4


def test_a_layer_is_its_equation_in_plain_torch():
    model = shake(tuned("timm_vit", "lion"), 0.3)
    first, last = model.methods[0].layers
    seen = []
    model.backbone.blocks[0].after(lambda x: seen.append(x) or x)
    with torch.no_grad():
        model.backbone(image())

        def plain(layer, x):
            w = layer.w * layer.keep_w
            w = w * min(1.0, float(layer.contraction / torch.linalg.matrix_norm(w)))
            a = F.layer_norm(x, x.shape[-1:]) @ (layer.u * layer.keep_u).T + layer.b
            z = torch.zeros_like(a)
            for _ in range(200):
                z = torch.tanh(z @ w.T + a)
            return x + z @ (layer.v * layer.keep_v).T

        body = backbone("timm_vit")
        torch.testing.assert_close(seen[0], body.blocks[0](plain(first, body.embed(image()))), rtol=1e-4, atol=1e-5)
        y = torch.randn(3, 32)
        torch.testing.assert_close(last(y), plain(last, y), rtol=1e-4, atol=1e-5)


def trained(method, steps, upto, seed=0):
    """Random movement in the place of training, with the method's own calls after every step."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(upto):
        method.after_backward(step, steps)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        method.after_step(step, steps)


def lion(**options):
    torch.manual_seed(3)
    (method,) = build({"name": "lion", "rank": 4, **options}, backbone("timm_vit"))
    return method


def test_the_smallest_weights_are_pruned_and_the_others_rewound():
    before, method = lion(), lion()
    trained(method, 10, 4)
    assert all(layer.keep_u.all() for layer in method.layers)
    dense = copy.deepcopy(method)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for one in (dense, method):
            generator.manual_seed(9)
            for parameter in one.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    method.after_step(4, 10)  # half of the run
    for layer, large, start in zip(method.layers, dense.layers, before.layers, strict=True):
        for name in ("u", "w", "v"):
            size, keep = getattr(large, name).abs(), getattr(layer, f"keep_{name}")
            assert int(keep.sum()) == keep.numel() - round(0.5 * keep.numel())
            assert size[keep].min() >= size[~keep].max()
            assert torch.equal(getattr(layer, name), getattr(start, name) * keep)
        assert torch.equal(layer.b, start.b)


def test_what_is_pruned_stays_zero_without_a_gradient_to_the_end():
    method = lion(sparsity=0.75, rounds=2)
    shares = []
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        method.after_step(step, 12)
        shares.append(float(next(iter(method.layers)).keep_u.float().mean()))
    assert shares == [1, 1] + [0.5] * 3 + [0.25] * 7
    first = next(iter(method.layers))
    assert not first.u[~first.keep_u].any()
    first(torch.randn(2, 32)).sum().backward()
    assert not first.u.grad[~first.keep_u].any()
    assert not first.v.grad[~first.keep_v].any()
    assert first.v.grad[first.keep_v].any()


def test_a_resumed_run_rewinds_to_the_same_values():
    through, stopped, resumed = lion(), lion(), lion()
    trained(through, 10, 6)
    trained(stopped, 10, 3)
    resumed.load_state_dict(stopped.state_dict())
    generator = torch.Generator().manual_seed(0)
    for parameters in [list(lion().parameters())] * 3:  # what the first three steps drew
        for parameter in parameters:
            torch.randn(parameter.shape, generator=generator)
    for step in range(3, 6):
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        resumed.after_step(step, 10)
    for one, other in zip(through.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_lottery_under_fsdp_in_two_processes_is_that_of_one(tmp_path):
    images, spec = write_images(tmp_path / "images" / "colors"), {"name": "lion", "rank": 4}
    train(tiny_config(images, tmp_path / "one", spec, epochs=2))
    config = tiny_config(images, tmp_path / "two", spec, epochs=2, strategy="fsdp", devices=2)
    config.data.batch_size //= 2
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "tools/train.py", str(file)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    assert float(two["methods.0.layers.0.keep_u"].float().mean()) == 0.5
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_without_sparsity_nothing_is_pruned():
    method = lion(sparsity=0.0)
    trained(method, 4, 4)
    assert all(layer.keep_u.all() and layer.v.all() for layer in method.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "^lion: rank is 0"),
        ({"rounds": 0}, "and rounds is 0; both are at least 1"),
        ({"sparsity": 1.0}, "^lion: sparsity is 1.0; it is at least 0 and below 1"),
        ({"search": 0.0}, "^lion: search is 0.0; it is above 0 and at most 1"),
        ({"contraction": 1.0}, "^lion: contraction is 1.0 and tolerance is 1e-06; both are between 0 and 1"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "lion", **options}, backbone("timm_vit"))
