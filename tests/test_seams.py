"""The seams carry what later methods need: each is shown with the smallest method that needs it.

Wherever a plain statement of the equation exists, the seam must equal it.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import MODELS, PLAIN, backbone, image


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
