"""A scale and a shift that keep what they gave: the same gradients, and what was scaled is free."""

import pytest
import torch
from torch import Tensor

from vpeft.methods.scaling import scale_shift


def plain(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return gamma * y + beta


def gradients(f, scale: float = 1.0) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    y, gamma, beta = torch.randn(3, 5, 8), scale * torch.randn(8), torch.randn(8)
    leaves = [tensor.requires_grad_() for tensor in (y, gamma, beta)]
    z = f(*leaves)
    return z, *torch.autograd.grad((z * torch.linspace(-1, 2, 8)).square().sum(), leaves)


@pytest.mark.parametrize("scale", [1.0, 0.03, 30.0])
def test_gradients_equal_those_of_the_product_and_the_sum(scale):
    torch.testing.assert_close(gradients(scale_shift, scale), gradients(plain, scale), rtol=1e-4, atol=1e-4)


def test_a_channel_that_is_switched_off_gets_no_gradient_of_its_scale_and_the_others_theirs():
    gamma = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    y = torch.randn(4, 3)
    scale_shift(y, gamma, torch.zeros(3, requires_grad=True)).sum().backward()
    assert gamma.grad is not None
    torch.testing.assert_close(gamma.grad, torch.tensor([0.0, 1.0, 1.0]) * y.sum(0))


def test_what_was_scaled_is_not_kept():
    y = torch.randn(4, 3, requires_grad=True) * 1
    storage = y.untyped_storage()._weak_ref()
    z = scale_shift(y, torch.ones(3, requires_grad=True), torch.zeros(3))
    del y
    assert torch.UntypedStorage._expired(storage)
    torch.UntypedStorage._free_weak_ref(storage)
    assert z.requires_grad


def test_it_compiles_whole_and_runs_under_vmap():
    gamma, beta = torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)
    y = torch.randn(3, 5, 8)

    def f(y: Tensor) -> Tensor:
        return scale_shift(y, gamma, beta)

    of_each = torch.vmap(scale_shift)(y, gamma.expand(3, -1), beta.expand(3, -1))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(f(y).square().sum(), (gamma, beta))
    for z in (of_each, torch.vmap(f)(y), compiled(y)):
        torch.testing.assert_close(torch.autograd.grad(z.square().sum(), (gamma, beta)), wanted)
