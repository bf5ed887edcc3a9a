"""Methods inside a Swin under the neck `stages` equal the official codes, on maps that have to be padded."""

from collections.abc import Callable

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from tests.golden import golden, images
from vpeft.backbones import Backbone, wrap
from vpeft.backbones.timm_swin import pad_first
from vpeft.dense.stages import Stages
from vpeft.methods import build

State = dict[str, Tensor]
BLOCKS = ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
SIDES = {"attn": "adapter1", "mlp": "adapter2"}


def lorand(g: State, part: str) -> State:
    found: State = {}
    for index, block in enumerate(BLOCKS):
        for ours, theirs in SIDES.items():
            layers = {"down": f"{part}/{block}.{theirs}.project1", "up": f"{part}/{block}.{theirs}.project2"}
            kernels = [torch.stack([g[f"{layer}.g{i}"] for i in range(4)]) for layer in layers.values()]
            found[f"{ours}.{index}.k"] = torch.stack(kernels)
            for name, layer in layers.items():
                found[f"{ours}.{index}.{name}.p"] = torch.stack([g[f"{layer}.A{i}"] for i in range(4)])
                found[f"{ours}.{index}.{name}.q"] = torch.stack([g[f"{layer}.B{i}"] for i in range(4)])
                found[f"{ours}.{index}.{name}.bias"] = g[f"{layer}.bias"]
    return found


def mona(g: State, part: str) -> State:
    modules = {"norm": "norm", "down": "project1", "mix": "adapter_conv.projector", "up": "project2"}
    modules |= {f"convs.{i}": f"adapter_conv.conv{i + 1}" for i in range(3)}
    names = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in modules.items() for leaf in ("weight", "bias")}
    names |= {"g": "gamma", "h": "gammax"}
    found: State = {}
    for index, block in enumerate(BLOCKS):
        for side, adapter in SIDES.items():
            for ours, theirs in names.items():
                tensor = g[f"{part}/{block}.{adapter}.{theirs}"]
                found[f"{side}.{index}.{ours}"] = tensor.flatten(1) if ours == "mix.weight" else tensor
    return found


def adaptformer(g: State, part: str) -> State:
    names = {"down": "project1", "up": "project2"}
    return {
        f"mlp.{index}.bottleneck.{ours}.{leaf}": g[f"{part}/{block}.adapter.{theirs}.{leaf}"]
        for index, block in enumerate(BLOCKS)
        for ours, theirs in names.items()
        for leaf in ("weight", "bias")
    }


def lora(g: State, part: str) -> State:
    found: State = {}
    for index, block in enumerate(BLOCKS):
        down, up = (g[f"{part}/{block}.attn.qkv.lora_{factor}"].chunk(2) for factor in "AB")
        for i in range(2):  # q and v
            found[f"down.{2 * index + i}.weight"] = down[i]
            found[f"updates.{index}.up.{i}"] = up[i]
    return found


CASES: dict[str, tuple[dict, Callable[[State, str], State]]] = {
    "swin_lorand": ({"name": "lorand"}, lorand),
    "swin_mona": ({"name": "mona"}, mona),
    "swin_lora": ({"name": "lora", "rank": 64, "alpha": 1.0}, lora),
    "swin_adaptformer": (
        {"name": "parallel", "bottleneck": 64, "scale": 0.1, "pre_norm": False, "activation": "gelu"},
        adaptformer,
    ),
}


def swin() -> tuple[Backbone, Stages]:
    model = SwinTransformer(
        img_size=(36, 52),  # type: ignore[arg-type]
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        mlp_ratio=2,
        num_classes=0,
    )
    model.load_state_dict({key: value for key, value in golden("swin_base").items() if not key.startswith("head.")})
    pad_first(model)
    body = wrap(model.requires_grad_(False), "golden")
    neck = Stages(body)
    g = golden("swin_mona")
    neck.norms.load_state_dict(
        {f"{i}.{leaf}": g[f"base/norm{i}.{leaf}"] for i in (0, 1) for leaf in ("weight", "bias")}
    )
    return body, neck


@pytest.mark.parametrize("file", CASES)
def test_maps_tokens_and_gradients_equal_the_official_code(file):
    spec, names = CASES[file]
    g, (body, neck) = golden(file), swin()
    for name, norm in neck.norms.named_parameters():
        torch.testing.assert_close(norm.detach(), g[f"base/norm{name}"])
    (method,) = build(spec, body)
    method.load_state_dict(names(g, "method"))
    method.eval().attach(body)  # type: ignore[operator]
    seen: list[Tensor] = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)

    maps = neck(body, images(36, 52))
    sum((m * g[f"cotangent/stage{i}"]).sum() for i, m in enumerate(maps)).backward()  # type: ignore[union-attr]

    for index, found in enumerate(maps):
        torch.testing.assert_close(found, g[f"output/stage{index}"], atol=1e-5, rtol=1e-5)
    tokens = [name for name in sorted(g) if name.startswith("output/tokens_")]
    for name, x in zip(tokens, seen, strict=True):
        torch.testing.assert_close(x[:1].flatten(1, 2), g[name], atol=5e-5, rtol=1e-5)
    gradients = names(g, "grad")
    assert {name for name, _ in method.named_parameters()} == set(gradients)
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-4, (name, difference)


def test_the_backbone_alone_equals_the_golden_one_in_the_official_order_only():
    g, (body, neck) = golden("swin_mona"), swin()
    with torch.no_grad():
        maps = neck(body, images(36, 52))
        for index, found in enumerate(maps):
            torch.testing.assert_close(found, g[f"output/plain_stage{index}"], atol=1e-5, rtol=1e-5)
        from timm.models.swin_transformer import SwinTransformerBlock

        for block in body.blocks:
            block.module.__class__ = SwinTransformerBlock  # timm's own order
        assert (neck(body, images(36, 52))[0] - g["output/plain_stage0"]).abs().max() > 0.5
