"""The seam of an affine map y = W x + b: what changes its output, its weight and bias, or what its gradient gives.

Each is shown with the smallest method that needs it.
"""

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import MODELS, PLAIN, backbone, image
from vpeft.affine import Affine


class ScaleShift(nn.Module):
    """gamma y + beta after an operation, in both forms."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(1 + torch.rand(dim)), nn.Parameter(torch.randn(dim))

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gamma * y + self.beta

    def weight(self, w: Tensor) -> Tensor:
        return self.gamma.view(-1, *[1] * (w.ndim - 1)) * w

    def bias(self, b: Tensor) -> Tensor:
        return self.gamma * b + self.beta


def every_affine(body) -> list[tuple[str, Affine]]:
    found = [(f"outside.{role}", affine) for role, affine in body.family.affines.items()]
    return found + [(f"{i}.{role}", a) for i, block in enumerate(body.blocks) for role, a in block.affines.items()]


@pytest.mark.parametrize("name", MODELS)
def test_an_affine_after_any_operation_merges_into_it(name):
    torch.manual_seed(0)
    for (role, affine), (_, twin_affine) in zip(
        every_affine(edited := backbone(name)), every_affine(merged := backbone(name)), strict=True
    ):
        update = ScaleShift(affine.shape[0])
        affine.edit(update)
        twin_affine.merge(update)
        with torch.no_grad():
            torch.testing.assert_close(edited(image()), merged(image()), rtol=1e-3, atol=1e-4, msg=role)


class Doubled:
    def weight(self, w: Tensor) -> Tensor:
        return 2 * w

    def bias(self, b: Tensor) -> Tensor:
        return b + 1


@pytest.mark.parametrize("name", MODELS)
def test_replaced_tensors_act_from_call_to_return_and_leave_the_stored_ones(name):
    body, plain = backbone(name), backbone(name)
    keys = set(body.state_dict())
    for block, twin in zip(body.blocks, plain.blocks, strict=True):
        for role in ("norm1", "fc1"):
            block.affines[role].replace(Doubled())
            for which, tensor in twin.affines[role].tensors().items():
                tensor.data.copy_(getattr(Doubled(), which)(tensor))
    torch.testing.assert_close(body(image()), plain(image()))
    assert set(body.state_dict()) == keys
    assert all(isinstance(p, nn.Parameter) for block in body.blocks for p in block.affines["fc1"].tensors().values())


def test_two_replacements_of_one_map_act_in_order_and_leave_its_own_tensors():
    affine, x = Affine(nn.Linear(4, 3)), torch.randn(2, 4)
    weight, bias = affine.owner.weight, affine.owner.bias
    affine.replace(Doubled())
    affine.replace(update := ScaleShift(3))
    wanted = update.gamma * nn.functional.linear(x, 2 * weight, bias + 1) + update.beta
    for _ in range(2):
        torch.testing.assert_close(affine.owner(x), wanted)
        assert affine.owner.weight is weight
        assert affine.owner.bias is bias


def test_a_map_that_fails_gets_its_own_tensors_back():
    affine = Affine(nn.Linear(4, 3))
    affine.replace(Doubled())
    with pytest.raises(RuntimeError):
        affine.owner(torch.randn(2, 5))
    assert isinstance(affine.owner.weight, nn.Parameter)


class Gradient(torch.autograd.Function):
    """y as it is; its gradient is handed to `taken`."""

    @staticmethod
    def forward(ctx, y: Tensor, taken: list[Tensor]) -> Tensor:
        ctx.taken = taken
        return y.view_as(y)

    @staticmethod
    def backward(ctx, *dy: Tensor):
        ctx.taken.append(dy[0])
        return dy[0], None


@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_of_a_map_is_taken_before_all_edits_of_its_output(name):
    """What a selective method needs that forms its own gradient of W."""
    body = backbone(name)
    affine, taken, read = body.blocks[1].affines["fc1"], [], []
    affine.edit(ScaleShift(affine.shape[0]))
    affine.edit_gradient(lambda x, y: read.append(x) or Gradient.apply(y, taken))
    body(image()).square().sum().backward()
    (x,), (dy,) = read, taken
    wanted = affine.tensors()["weight"].grad
    torch.testing.assert_close(dy.flatten(0, -2).T @ x.flatten(0, -2), wanted, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_map_that_is_never_called_is_refused():
    with pytest.raises(ValueError, match="MultiheadAttention reads 'in_proj_weight' as a tensor"):
        backbone("open_clip").blocks[0].affines["qkv"].edit_gradient(lambda x, y: y)


def test_a_shift_without_a_bias_to_go_to_refuses_to_merge():
    with pytest.raises(ValueError, match="adds a bias to a Linear that has none"):
        Affine(nn.Linear(32, 32, bias=False)).merge(ScaleShift(32))


class Shared(nn.Module):
    """A weight delta whose factors U and V all layers share (as FacT's)."""

    def __init__(self, u: nn.Linear, v: nn.Linear) -> None:
        super().__init__()
        self.shared = u, v
        self.core = nn.Parameter(torch.randn(2, 2))

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = self.shared
        return y + v(u(x) @ self.core)

    def weight(self, w: Tensor) -> Tensor:
        u, v = self.shared
        return w + v.weight @ self.core.T @ u.weight

    def bias(self, b: Tensor) -> Tensor:
        return b


@pytest.mark.parametrize("name", PLAIN)
def test_weight_deltas_may_share_factors_across_layers(name):
    body, merged = backbone(name), backbone(name)
    u, v = nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)
    for block, twin in zip(body.blocks, merged.blocks, strict=True):
        update = Shared(u, v)
        block.affines["proj"].edit(update)
        twin.affines["proj"].merge(update)
    out = body(image())
    torch.testing.assert_close(out, merged(image()), rtol=1e-4, atol=1e-5)
    out.sum().backward()
    assert u.weight.grad is not None
    assert v.weight.grad is not None
