"""What runs beside a backbone: nothing runs backward where the method says so, and its equations hold."""

import pytest
import torch
import torch.nn.functional as F

from tests.zoo import MODELS, REFUSED, backbone, image, shake, tuned
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tuned import Tuned


def blocks_with_a_backward(model: Tuned) -> list[int]:
    """Indexes of the blocks inside which a gradient is computed in one training step."""
    ran = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, index):
            ctx.index = index
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            ran.append(ctx.index)
            return gradient, None

    for index, block in enumerate(model.backbone.blocks):
        for branch in (block.attn, block.mlp):
            branch.edit(lambda x, h, y, index=index: Watch.apply(y, index))
    model.train()(image()).square().sum().backward()
    return sorted(set(ran))


@pytest.mark.parametrize("method", ["linear", "vqt", "vqt_weighted", "lst"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_runs_backward_through_the_backbone(name, method):
    if (name, method) not in REFUSED:
        assert blocks_with_a_backward(tuned(name, method)) == []


@pytest.mark.parametrize("name", MODELS)
def test_in_dtl_nothing_runs_backward_through_the_lower_blocks(name):
    body = backbone(name)
    model = Tuned(body, build({"name": "dtl"}, body), LinearHead(body.dim, 3))
    half = len(body.blocks) // 2
    # The first block that h is added after runs forward only too: its output is changed, not its input.
    assert blocks_with_a_backward(model) == list(range(half + 1, len(body.blocks)))


def test_the_watch_sees_a_backward_where_there_is_one():
    assert blocks_with_a_backward(tuned("timm_vit", "lora_qv")) == [0, 1]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["timm_vit", "timm_siglip", "open_clip", "hf_registers"])
def test_the_ladder_equals_its_equations(name, residual):
    body, plain = backbone(name), backbone(name)
    (lst,) = build({"name": "lst", "residual": residual}, body)
    model = shake(Tuned(body, [lst], torch.nn.Identity()).eval())

    with torch.no_grad():
        x = plain.embed(image())
        s = lst.rungs[0].enter(x)
        for rung, block in zip(lst.rungs, plain.blocks, strict=True):
            x = block(x)
            g = torch.sigmoid(10 * rung.gate)
            s = rung.side(g * s + (1 - g) * rung.down(x))
        y = lst.up(lst.norm(s))
        if residual:
            g = torch.sigmoid(10 * lst.gate)
            y = g * y + (1 - g) * plain.finish(x)
        torch.testing.assert_close(model(image()), plain.pool(y))


def test_a_stage_of_swin_begins_with_means_of_the_stage_before_and_is_deterministic_on_a_gpu():
    model = shake(tuned("timm_swin", "lst"))
    rung = model.methods[0].rungs[2]
    old, x = torch.randn(2, 16 * 16, rung.carry.in_features, requires_grad=True), torch.randn(2, 8, 8, 64)
    rung.stream.s = old
    rung.begin(x)
    means = old.view(2, 8, 2, 8, 2, -1).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(rung.stream.s, rung.enter(x.flatten(1, 2)) + rung.carry(means))
    nodes, names = [rung.stream.s.grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert "AvgPool2DBackward0" in names
    assert not any("Adaptive" in name for name in names), "torch has no deterministic backward of it for a GPU"


def test_a_ladder_as_wide_as_the_backbone_begins_as_the_backbone_with_other_inputs():
    body = backbone("timm_vit")
    (lst,) = build({"name": "lst", "reduction": 1}, body)
    x = torch.randn(2, 17, 32)
    for rung, block in zip(lst.rungs, body.blocks, strict=True):
        torch.testing.assert_close(rung.side(x), block(x))
        torch.testing.assert_close(rung.down(x), x)


def test_pruning_keeps_the_heads_and_the_heaviest_rows():
    body = backbone("timm_vit")
    with torch.no_grad():
        for block in body.model.blocks:
            block.attn.proj.weight[[3, 5, 7, 31]] *= 100
            block.mlp.fc1.weight[:16] *= 100
            block.attn.qkv.weight.view(3, 2, 16, 32)[:, :, [4, 9]] *= 100
    (lst,) = build({"name": "lst"}, body)
    block = body.model.blocks[1]
    side, channels = lst.rungs[1].side, [3, 5, 7, 31]
    assert torch.equal(side.mlp.fc1.weight, block.mlp.fc1.weight[:16][:, channels])
    assert torch.equal(side.norm1.weight, block.norm1.weight[channels])
    inner = torch.tensor([4, 9, 20, 25])
    q = block.attn.qkv.weight[inner][:, channels]
    assert torch.equal(side.attn.qkv.weight[:4], q)
    assert torch.equal(side.attn.proj.weight, block.attn.proj.weight[channels][:, inner])


def test_dtl_reads_the_mean_of_the_patches_or_what_the_backbone_reads():
    for name in ("timm_registers", "hf_siglip", "open_clip", "timm_swin"):
        body, plain = backbone(name), backbone(name)
        Tuned(body, build({"name": "dtl"}, body), torch.nn.Identity())
        with torch.no_grad():
            x = plain.embed(image())
            for index, block in enumerate(plain.blocks):
                x = block(plain.between(index, x))
            patches = x.flatten(1, -2)[:, plain.blocks[-1].prefix :]
            torch.testing.assert_close(body(image()), plain.family.norm(patches.mean(1)))


def test_the_activation_of_dtl_is_a_soft_hinge():
    (dtl,) = build({"name": "dtl", "beta": 3.0}, body := backbone("timm_vit"))
    parts = [(torch.randn(2, 17, 4, requires_grad=True), torch.randn(32, 4, requires_grad=True)) for _ in range(2)]
    dtl.low = parts
    h = sum(a @ b.T for a, b in parts)
    ours, wanted = dtl.back(body.blocks[0]), h * torch.sigmoid(3 * h)
    torch.testing.assert_close(ours, wanted)
    leaves = [tensor for part in parts for tensor in part]
    gradients = (torch.autograd.grad(out.square().sum(), leaves) for out in (ours, wanted))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "hf_siglip"])
@pytest.mark.parametrize("method", ["dtl", "lst"])
def test_side_networks_stack_with_prompts_before_them(name, method):
    model = shake(tuned(name, "vpt_deep", method), 0.05)
    model(image()).square().sum().backward()
    assert all(p.grad is not None for n, p in model.trainable() if not n.startswith("methods.0"))


def test_dtl_says_that_prompts_come_first():
    with pytest.raises(ValueError, match=r"^methods dtl and vpt, in this order, .* put dtl last"):
        tuned("timm_vit", "dtl", "vpt_deep")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dtl", "rank": 0}, "dtl: rank is 0; at least 1"),
        ({"name": "dtl", "beta": 0.0}, "dtl: beta is 0.0; a number above 0"),
        ({"name": "dtl", "first": 2}, "dtl: first is 2; .* has blocks 0 to 1"),
        ({"name": "dtl", "kernel": -1}, "dtl: kernel is -1; 0 for none"),
        ({"name": "dtl", "pool": "max"}, "pool is 'max'"),
        ({"name": "lst", "reduction": 0}, "lst: reduction is 0; a whole number"),
        ({"name": "lst", "reduction": 5}, "lst: reduction is 5; .* the width of a head, which is 16"),
        ({"name": "lst", "init": "zero"}, "init is 'zero'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, backbone("timm_vit"))


def test_two_methods_cannot_both_read_the_features():
    with pytest.raises(ValueError, match="DTL and LST both replace how features are read"):
        tuned("timm_vit", "dtl", "lst")


def test_swish_of_zero_stays_zero_through_the_convolution():
    model, plain = tuned("timm_vit", "dtl_plus"), tuned("timm_vit", "dtl")
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(image()), plain.backbone(image()))
        assert F.silu(torch.zeros(1)) == 0
