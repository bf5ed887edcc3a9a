"""Prompts inside the windows of a Swin equal the official code, for one image at a time and for a batch of ours."""

import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden, images, swin_backbone
from vpeft.backbones import Backbone
from vpeft.methods import build
from vpeft.methods.vpt import VPT
from vpeft.tuned import Tuned


def swin() -> Backbone:
    return swin_backbone("swin_vpt_base", 8, (2, 2, 1, 1), (1, 2, 2, 4))


def prompts(g: dict[str, Tensor], part: str, deep: bool) -> dict[str, Tensor]:
    first = g[f"{part}/prompt"]
    if not deep:
        return {"prompts.0": first}
    later = [g[f"{part}/deep_prompt_{stage}"] for stage in range(4)]
    return {"prompts.0": torch.cat([first, later[0]]), **{f"prompts.{i}": later[i] for i in (1, 2, 3)}}


def build_vpt(body: Backbone, deep: bool) -> VPT:
    (method,) = build({"name": "vpt", "prompts": 3, "deep": deep}, body)
    assert isinstance(method, VPT)
    return method


@pytest.mark.parametrize("deep", [False, True])
def test_tokens_features_and_gradients_equal_the_official_code(deep):
    g, body = golden("swin_vpt_deep" if deep else "swin_vpt_shallow"), swin()
    method = build_vpt(body, deep)
    method.load_state_dict(prompts(g, "method", deep))
    seen: list[Tensor] = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)
    tuned = Tuned(body, [method], nn.Identity()).eval()

    features = tuned(images(64))
    (features * g["cotangent"]).sum().backward()

    torch.testing.assert_close(features, g["output/features"], atol=1e-5, rtol=1e-5)
    names = [name for name in sorted(g) if name.startswith("output/tokens_")]
    assert len(names) == len(seen) == 6
    for name, tokens in zip(names, seen, strict=True):
        torch.testing.assert_close(tokens[:1].flatten(1, 2), g[name], atol=5e-5, rtol=1e-5)
    gradients = prompts(g, "grad", deep)
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-4, (name, difference)


def test_images_of_a_batch_do_not_see_each_other():
    body = swin()
    method = build_vpt(body, deep=False)
    method.load_state_dict(prompts(golden("swin_vpt_shallow"), "method", deep=False))
    tuned = Tuned(body, [method], nn.Identity()).eval()
    with torch.no_grad():
        both, alone = tuned(images(64)), torch.cat([tuned(image[None]) for image in images(64)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-6)


def test_the_backbone_alone_equals_the_golden_one():
    plain = golden("swin_vpt_deep")["output/plain_features"]
    torch.testing.assert_close(swin()(images(64)), plain, atol=1e-5, rtol=1e-5)
