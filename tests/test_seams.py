"""The seams carry what later methods need: each is shown with the smallest method that needs it.

Wherever a plain statement of the equation exists, the seam must equal it.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import MODELS, backbone, image
from vpeft.seams import Affine

PLAIN = [name for name in MODELS if name != "timm_swin"]


class Bottleneck(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, 4), nn.Linear(4, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())


def branch_input(name: str):
    """Tokens entering the last block of a backbone."""
    body = backbone(name)
    x = body.embed(image())
    for index, block in enumerate(body.blocks[:-1]):
        x = block(body.between(index, x))
    return body, body.blocks[-1], x.detach()


class Edit(nn.Module):
    """An adapter in each of the places the literature knows."""

    def __init__(self, adapter: nn.Module, where: str) -> None:
        super().__init__()
        self.adapter, self.where = adapter, where

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        if self.where == "parallel, raw":
            return y + self.adapter(x).reshape(y.shape)
        if self.where == "parallel, normalised":
            return y + self.adapter(h).reshape(y.shape)
        assert self.where == "sequential"
        return y + self.adapter(y)


@pytest.mark.parametrize("where", ["parallel, raw", "parallel, normalised", "sequential"])
@pytest.mark.parametrize("branch", ["attn", "mlp"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_on_a_branch_equal_their_equation(name, branch, where):
    _, plain, x = branch_input(name)
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for key in ("attn", "mlp"):
        getattr(plain, key).edit(lambda x, h, y, key=key: seen.update({key: (x, h, y)}) or y)
    plain(x)
    _, edited, _ = branch_input(name)
    adapter = Bottleneck(edited.dim)
    getattr(edited, branch).edit(Edit(adapter, where))

    stream, h, y = seen[branch]
    read = {"parallel, raw": stream, "parallel, normalised": h, "sequential": y}[where]
    wanted = stream + y.reshape(stream.shape) + adapter(read).reshape(stream.shape)
    if branch == "attn":  # the MLP branch follows, with its own frozen weights
        captured: list[Tensor] = []
        edited.mlp.edit(lambda x, h, y: captured.append(x) or y)
        edited(x)
        torch.testing.assert_close(captured[0].reshape(wanted.shape), wanted)
    else:
        torch.testing.assert_close(edited(x).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_a_post_adapter_sees_the_finished_block(name):
    _, plain, x = branch_input(name)
    _, edited, _ = branch_input(name)
    adapter = Bottleneck(edited.dim)
    edited.after(lambda x: x + adapter(x))
    out = plain(x)
    torch.testing.assert_close(edited(x), out + adapter(out))


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


@pytest.mark.parametrize("name", PLAIN)
def test_tokens_can_be_added_replaced_and_taken_away(name):
    body = backbone(name)
    lengths: list[int] = []
    prompt = nn.Parameter(torch.randn(1, 3, 32))
    at = body.blocks[0].prefix
    body.blocks[0].before(lambda x: torch.cat([x[:, :at], prompt.expand(len(x), -1, -1), x[:, at:]], 1))
    body.blocks[1].before(lambda x: torch.cat([x[:, :at], -prompt.expand(len(x), -1, -1), x[:, at + 3 :]], 1))
    for block in body.blocks:
        block.grow_prefix(3)
        block.after(lambda x: lengths.append(x.shape[1]) or x)
    body.before_finish(lambda x: torch.cat([x[:, :at], x[:, at + 3 :]], 1))
    body(image()).sum().backward()
    assert lengths == [at + 3 + 16] * 2
    assert prompt.grad is not None


@pytest.mark.parametrize("name", PLAIN)
def test_queries_read_a_block_without_touching_its_tokens_or_its_gradient(name):
    """What VQT needs: features of the frozen path unchanged, nothing runs backward through it."""
    body = backbone(name).requires_grad_(False)
    plain = body(image())
    queries = nn.Parameter(torch.randn(1, 2, 32))
    read: list[Tensor] = []

    def query(x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        read.append(body.blocks[1].attend(body.blocks[1].module_norm(queries).expand(len(h), -1, -1), h))
        return y

    body.blocks[1].module_norm = copy.deepcopy(body.blocks[1].attn.opens)
    body.blocks[1].attn.edit(query)
    features = body(image())
    assert torch.equal(features, plain)
    assert not features.requires_grad
    read[0].sum().backward()
    assert queries.grad is not None


@pytest.mark.parametrize("name", MODELS)
def test_a_side_network_reads_every_block_through_the_open_loop(name):
    """What LST needs: the backbone runs without a graph, the side network learns from every block."""
    body = backbone(name).requires_grad_(False)
    side = [Bottleneck(block.dim) for block in body.blocks]
    with torch.no_grad():
        states, x = [], body.embed(image())
        for index, block in enumerate(body.blocks):
            x = block(body.between(index, x))
            states.append(x)
    out = sum(net(state).mean() for net, state in zip(side, states, strict=True))
    out.backward()
    assert all(net.down.weight.grad is not None for net in side)
    torch.testing.assert_close(body.pool(body.finish(x)), body(image()))


@pytest.mark.parametrize("name", MODELS)
def test_a_side_stream_can_feed_back_into_the_backbone(name):
    """What DTL needs: a state carried from block to block that is added to later blocks' input."""
    body = backbone(name)
    same_width = [block for block in body.blocks if block.dim == body.blocks[0].dim]
    net = Bottleneck(body.blocks[0].dim)
    state: list[Tensor] = []
    same_width[0].before(lambda x: state.append(net(x)) or x)
    same_width[1].before(lambda x: x + state.pop())
    body(image()).sum().backward()
    assert net.up.weight.grad.any()
    assert state == []


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_in_pixels_is_added_before_the_patch_embedding(name):
    body, plain = backbone(name), backbone(name)
    prompt = nn.Parameter(torch.randn(3, 64, 64))
    body.edit_pixels(lambda images: images + prompt)
    torch.testing.assert_close(body(image()), plain(image() + prompt))
    body(image()).sum().backward()
    assert prompt.grad is not None
