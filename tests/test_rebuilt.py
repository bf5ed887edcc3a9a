"""What is made again for the gradient: the same numbers, from tensors that are kept anyway."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vpeft import rebuilt
from vpeft.methods.krona import Product
from vpeft.rebuilt import Linear, Op, Scale, apply, linear

WEIGHT, BIAS = 1 + 0.1 * torch.arange(12.0), torch.arange(12.0) - 5

MAKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "quick_gelu": lambda u: u * torch.sigmoid(1.702 * u),
    "layer_norm": lambda u: F.layer_norm(u, (12,), WEIGHT, BIAS),
    "broadcast": lambda u: u * u[:1],
    "gate": lambda u: u * u[:, :1],  # one token of every image
}
OPS: dict[str, tuple[Op, list[tuple[int, ...]]]] = {
    "linear": (Linear(), [(3, 12)]),
    "linear_with_bias": (Linear(), [(3, 12), (3,)]),
    "scale": (Scale(), [(12,)]),
    "kronecker": (Product(), [(2, 4), (5, 3)]),
}


def gradients(f: Callable[..., Tensor], maker: Callable[[Tensor], Tensor], shapes: list[tuple[int, ...]], cast=False):
    torch.manual_seed(0)
    u = torch.randn(5, 7, 12, requires_grad=True)
    theta = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        z = f(maker(1 * u), *theta)
    return z, torch.autograd.grad(z.float().square().sum(), (u, *theta))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_those_of_the_plain_function(op, maker, monkeypatch):
    f, shapes = OPS[op]
    monkeypatch.setattr(rebuilt, "PORTION", 2 * 7 * 12)  # two images at a time, and one that is left
    ours, theirs = gradients(lambda *xs: apply(f, *xs), MAKERS[maker], shapes), gradients(f, MAKERS[maker], shapes)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("maker", MAKERS)
def test_gradients_under_autocast_in_portions_differ_by_rounding(maker, monkeypatch):
    monkeypatch.setattr(rebuilt, "PORTION", 2 * 7 * 12)
    ours, theirs = (gradients(f, MAKERS[maker], [(3, 12)], cast=True) for f in (linear, F.linear))
    for one, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert (one - other).norm() <= 2**-8 * other.norm(), "half a step of bfloat16"


@pytest.mark.parametrize("maker", MAKERS)
def test_gradients_under_autocast_are_those_of_the_plain_function(maker):
    ours, theirs = (gradients(f, MAKERS[maker], [(3, 12)], cast=True) for f in (linear, F.linear))
    torch.testing.assert_close(ours, theirs)


def kept_beside(f: Callable[[Tensor, Tensor], Tensor], u: Tensor, maker: Callable[[Tensor], Tensor]) -> bool:
    """Whether the numbers of x are alive while only z = f(x, W) is."""
    x = maker(u)
    storage = x.untyped_storage()._weak_ref()  # the tensor may go while its storage stays
    z = f(x, torch.randn(3, 12, requires_grad=True))
    del x
    alive = not torch.UntypedStorage._expired(storage)
    torch.UntypedStorage._free_weak_ref(storage)
    assert z.requires_grad
    return alive


@pytest.mark.parametrize("maker", ["gelu", "silu", "quick_gelu", "layer_norm"])
def test_what_a_norm_or_an_activation_gave_is_not_kept(maker):
    u = torch.randn(5, 7, 12, requires_grad=True) * 1
    assert not kept_beside(linear, u, MAKERS[maker])
    assert kept_beside(F.linear, u, MAKERS[maker])


def test_what_comes_from_elsewhere_is_kept():
    u = torch.randn(5, 7, 12, requires_grad=True) * 1
    assert kept_beside(linear, u, lambda u: u + 1)
    assert kept_beside(linear, u.detach(), F.gelu)


def test_within_activation_checkpointing_nothing_is_fetched_early():
    def block(u: Tensor, a: Tensor) -> Tensor:
        return linear(F.gelu(1 * u), a)

    def checkpointed(u: Tensor, a: Tensor) -> Tensor:
        z = checkpoint(block, u, a, use_reentrant=False)
        assert isinstance(z, Tensor)
        return z

    ours, theirs = (gradients(f, lambda u: u, [(3, 12)]) for f in (checkpointed, block))
    torch.testing.assert_close(ours, theirs)


def test_it_compiles_whole_and_runs_under_vmap():
    u, a = torch.randn(5, 7, 12, requires_grad=True), torch.randn(3, 12, requires_grad=True)

    def f(u: Tensor) -> Tensor:
        return linear(F.gelu(u), a)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for other in (compiled, torch.vmap(f)):
        ours, theirs = (torch.autograd.grad(g(u).square().sum(), (u, a)) for g in (other, f))
        torch.testing.assert_close(ours, theirs)
