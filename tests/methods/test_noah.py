"""NOAH equals its official code, and a subnet of the supernet equals a network of those widths."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.golden import backbone as golden_backbone
from tests.golden import golden, images
from tests.zoo import backbone, image, shake, tuned
from vpeft.methods import build
from vpeft.methods.noah import NOAH, Architecture
from vpeft.tuned import Tuned


def names(g, part):
    found = {}
    for i in range(3):
        found[f"cells.{i}.prompts"] = g[f"{part}/blocks.{i}.prompt"][0]
        found[f"cells.{i}.down.weight"] = g[f"{part}/blocks.{i}.lora.A.weight"]
        found[f"cells.{i}.updates.0.up.0"] = g[f"{part}/blocks.{i}.lora.B.weight"]
        for linear in ("down", "up"):
            for kind in ("weight", "bias"):
                found[f"cells.{i}.adapter.bottleneck.{linear}.{kind}"] = g[f"{part}/blocks.{i}.adapter.{linear}.{kind}"]
    return found


def test_tokens_features_and_gradients_equal_the_official_code():
    g, body = golden("cls_noah_mix"), golden_backbone()
    (method,) = build({"name": "noah", "prompts": 3, "lora": 4, "adapter": 8}, body)
    method.load_state_dict(names(g, "method"))
    seen = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)
    model = Tuned(body, [method], nn.Identity()).eval()

    features = model(images())
    (features * g["cotangent"]).sum().backward()

    torch.testing.assert_close(features, g["output/features"], atol=1e-5, rtol=1e-5)
    for index, tokens in enumerate(seen):
        at_the_end = torch.cat([tokens[:1, :1], tokens[:1, 4:], tokens[:1, 1:4]], dim=1)  # where theirs stand
        torch.testing.assert_close(at_the_end, g[f"output/tokens_block{index}"], atol=5e-5, rtol=1e-5)
    gradients = names(g, "grad")
    assert {name for name, _ in method.named_parameters()} == set(gradients)
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-4, (name, difference)


def subnet_of(noah: NOAH, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The slices of the supernet's weights that an architecture uses, under the names of a NOAH of those widths."""
    state = {}
    for i, cell in enumerate(noah.cells):
        n, r, w = architecture.prompts[i], architecture.lora[i], architecture.adapter[i]
        if n:
            state[f"cells.{i}.prompts"] = cell.prompts[:n]
        if r:
            state[f"cells.{i}.down.weight"] = cell.down.weight[:r]
            state |= {f"cells.{i}.updates.{j}.up.0": update.up[0][:, :r] for j, update in enumerate(cell.updates)}
        if w:
            down, up, name = cell.adapter.bottleneck.down, cell.adapter.bottleneck.up, f"cells.{i}.adapter.bottleneck"
            state |= {f"{name}.down.weight": down.weight[:w], f"{name}.down.bias": down.bias[:w]}
            state |= {f"{name}.up.weight": up.weight[:, :w], f"{name}.up.bias": up.bias}
    return state


def build_tuned(body_name: str, **widths) -> Tuned:
    body = backbone(body_name)
    return Tuned(body, build({"name": "noah", "dropout": 0.0, **widths}, body), nn.Identity()).eval()


@pytest.mark.parametrize("body", ["timm_vit", "timm_dinov3", "hf_vit", "open_clip", "timm_swin"])
def test_a_sampled_subnet_is_the_network_of_its_widths(body):
    supernet = shake(build_tuned(body, prompts=4, lora=3, adapter=5))
    noah = supernet.methods[0]
    blocks = len(noah.cells)
    with torch.no_grad():
        widest = supernet(image())
    for front in (Architecture((3, 0), (2, 0), (0, 4)), Architecture((1, 2), (0, 3), (5, 0))):
        architecture = Architecture(*(tuple(w) + (0,) * (blocks - 2) for w in vars(front).values()))
        noah.sample(architecture)
        alone = build_tuned(body, **{name: list(w) for name, w in vars(architecture).items()})
        alone.methods[0].load_state_dict(subnet_of(noah, architecture))
        assert sum(p.numel() for p in alone.methods[0].parameters()) == noah.size(architecture)
        with torch.no_grad():
            torch.testing.assert_close(supernet(image()), alone(image()), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            assert not torch.equal(supernet(image()), widest)
    noah.sample()
    with torch.no_grad():
        assert torch.equal(supernet(image()), widest)
    assert [block.prefix for block in supernet.backbone.blocks] == [
        block.prefix for block in build_tuned(body, prompts=4).backbone.blocks
    ]


def test_every_parameter_of_the_supernet_has_a_gradient_whatever_is_sampled():
    model = tuned("timm_vit", "noah")
    noah = model.methods[0]
    noah.sample(Architecture((1, 0), (0, 1), (0, 0)))
    model(image()).sum().backward()
    for name, parameter in noah.named_parameters():
        assert parameter.grad is not None, name
    assert noah.cells[0].prompts.grad[0].any()
    assert not noah.cells[0].prompts.grad[1:].any()
    assert not noah.cells[1].adapter.bottleneck.up.bias.grad.any()


def test_a_block_without_prompts_keeps_those_before_it_and_one_with_some_replaces_them():
    model = build_tuned("timm_registers", prompts=[3, 0], lora=0, adapter=2)
    lengths = []
    for block in model.backbone.blocks:
        block.after(lambda x: lengths.append(x.shape[1]) or x)
    model(image())
    plain = 1 + 4 + 16
    assert lengths == [plain + 3, plain + 3]
    lengths.clear()
    replaced = build_tuned("timm_registers", prompts=[3, 2], lora=0, adapter=0)
    for block in replaced.backbone.blocks:
        block.after(lambda x: lengths.append(x.shape[1]) or x)
    replaced(image())
    assert lengths == [plain + 3, plain + 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [1, 2, 3]}, "^noah: prompts has 3 widths and timm_vit has 2 blocks; an architecture is for"),
        ({"lora": -1}, "^noah: lora is -1; a width is at least 0"),
        ({"adapter": [1, -2]}, r"^noah: adapter is \[1, -2\]; a width is at least 0"),
        ({"prompts": 0, "lora": 0, "adapter": 0}, "^noah: prompts, lora and adapter are all 0"),
        ({"adapter": ["wide"]}, "adapter is \\['wide'\\], which is not"),
    ],
)
def test_wrong_widths_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "noah", **options}, backbone("timm_vit"))


def test_an_architecture_is_a_value():
    one = Architecture((1,), (2,), (3,))
    assert one == replace(one)
    assert len({one, replace(one), replace(one, lora=(0,))}) == 2
