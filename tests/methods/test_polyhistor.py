"""Polyhistor against its equations written out a second time, with loops and named axes instead of linear networks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import backbone, image, shake
from vpeft.methods.polyhistor import Factors, Polyhistor
from vpeft.tuned import Tuned

TASKS = ("a", "b", "c")
SMALL = {"ratio": 4, "rank": 3, "embedding": 8}


def built(body: str, lite: bool) -> tuple[Tuned, Polyhistor]:
    bone = backbone(body)
    torch.manual_seed(3)
    method = Polyhistor(bone, TASKS, lite, **SMALL)
    return shake(Tuned(bone, [method], nn.Identity()).eval()), method


def matrices(factors: Factors, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """W = sum_r X[:, r] Y[:, r]^T, every entry of X and Y a linear function of the embedding."""

    def entries(network: nn.Linear) -> Tensor:
        tensor = network.weight.view(-1, factors.rank, embedding.numel())
        return torch.einsum("mrk,k->mr", tensor, embedding) + network.bias.view(-1, factors.rank)

    pairs = (factors.y_down, factors.x_down), (factors.x_up, factors.y_up)
    return tuple(sum(torch.outer(entries(a)[:, r], entries(b)[:, r]) for r in range(factors.rank)) for a, b in pairs)


def kronecker(kernel: Tensor, template: Tensor) -> Tensor:
    rows = [torch.cat([entry * template for entry in row], dim=1) for row in kernel]
    return torch.cat(rows, dim=0)


@pytest.mark.parametrize("body", ["timm_vit", "timm_swin"])
@pytest.mark.parametrize("lite", [False, True])
def test_every_branch_of_every_task_is_the_equation(body, lite):
    model, method = built(body, lite)
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
            seen.append((y,))
            return y

    branches = [branch for block in model.backbone.blocks for branch in (block.attn, block.mlp)]
    for branch in branches:
        branch.edits.insert(0, Spy())
        branch.edits.append(Spy())
    narrowest = model.backbone.blocks[0].dim
    for index, task in enumerate(TASKS):
        seen.clear()
        method.use(task)
        model(image())
        for layer, adapter in enumerate(method.adapters):
            (y,), (z,) = seen[2 * layer], seen[2 * layer + 1]
            v = method.tasks.weight[index]
            if lite:
                down, up = matrices(method.hyper[str(narrowest)], v)
                down, up = kronecker(adapter.down, down), kronecker(adapter.up, up)
                assert adapter.down.shape[0] == y.shape[-1] // narrowest
            else:
                down, up = matrices(method.hyper[str(y.shape[-1])], torch.cat([v, adapter.layer]))
            expected = y + torch.einsum("dn,...n->...d", up, F.gelu(torch.einsum("nd,...d->...n", down, y)))
            torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lite", [False, True])
def test_tasks_differ_and_share(lite):
    model, method = built("timm_swin", lite)
    outputs = {}
    for task in TASKS:
        method.use(task)
        outputs[task] = model(image())
    assert not torch.allclose(outputs["a"], outputs["b"], atol=1e-3)
    method.use("a")
    assert torch.equal(model(image()), outputs["a"])
    method.use("b")
    model(image()).sum().backward()
    rows = method.tasks.weight.grad.abs().sum(1)
    assert rows[1] > 0
    assert rows[0] == rows[2] == 0
    assert all(p.grad is not None for p in method.hyper.parameters())


@pytest.mark.parametrize(
    ("lite", "ratio", "count", "printed"), [(False, 16, 6_365_696, 6.41e6), (True, 32, 413_032, 0.41e6)]
)
def test_counts_on_swin_tiny_are_those_of_the_docstring_and_near_the_printed_ones(lite, ratio, count, printed):
    dims, depths, k, r, tasks = (96, 192, 384, 768), (2, 2, 6, 2), 64, 32, 4
    blocks = [type("Block", (), {"dim": dim}) for dim, depth in zip(dims, depths, strict=True) for _ in range(depth)]
    bone = type("Body", (), {"blocks": blocks, "name": "swin_tiny"})
    method = Polyhistor(bone, [str(t) for t in range(tasks)], lite, ratio, r, k)
    if lite:
        scales = [dim // 96 for dim, depth in zip(dims, depths, strict=True) for _ in range(depth)]
        formula = k * tasks + 2 * r * (k + 1) * (96 + 96 // ratio) + 4 * sum(s**2 for s in scales)
    else:
        formula = k * (tasks + 2 * 12) // 2 + 2 * r * (k + 1) * sum(dim + dim // ratio for dim in dims)
    assert sum(p.numel() for p in method.parameters()) == formula == count
    assert abs(count - printed) / printed < 0.01


def test_what_cannot_be_is_refused_in_words():
    body = backbone("timm_swin")
    with pytest.raises(ValueError, match=r"tasks are \['a', 'a'\]; at least one is needed, and each once"):
        Polyhistor(body, ("a", "a"))
    with pytest.raises(ValueError, match="32, 64 wide; each must be a multiple of ratio 24"):
        Polyhistor(body, ratio=24)
    with pytest.raises(ValueError, match="embedding 7"):
        Polyhistor(body, embedding=7)
