"""The tower hands on the tokens that its vendor would, runs no block behind them, and trains what they depend on."""

import pytest
import torch
from torch import nn

from mllm.shapes import VisionShape
from mllm.vision import Tokens, tower, vision_shape
from tests.zoo import MODELS
from vpeft.backbones import wrap
from vpeft.methods import METHODS
from vpeft.tuned import Tuned


def backbone(name="timm_vit"):
    torch.manual_seed(0)
    return wrap(MODELS[name](), name)


def images(count=2):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["hf_clip", "hf_dinov2"])
def test_the_default_is_the_last_hidden_state_but_one_without_the_class_token(name):
    tuned = tower(backbone(name)).eval()
    hidden = tuned.backbone.model(images(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tuned(images()), hidden[:, 1:], rtol=0, atol=0)
    assert vision_shape(tuned) == VisionShape(32, (4, 4), 0)


def test_all_tokens_of_the_last_block_pass_the_last_norm_for_blip2():
    tuned = tower(backbone("timm_registers"), layer=-1, prefix=True, norm=True).eval()
    torch.testing.assert_close(tuned(images()), tuned.backbone.model.forward_features(images()), rtol=0, atol=0)
    assert vision_shape(tuned) == VisionShape(32, (4, 4), 5)
    assert vision_shape(tuned).tokens == tuned(images()).shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_shape_that_connectors_are_told(name):
    tuned = tower(backbone(name)).eval()
    shape = vision_shape(tuned)
    assert tuned(images()).shape == (2, shape.tokens, shape.dim)
    assert not any(p.requires_grad for p in tuned.parameters())


def test_a_swin_gives_the_map_of_its_last_stage_row_by_row():
    tuned = tower(backbone("timm_swin"), layer=-1, norm=True).eval()
    model = tuned.backbone.model
    assert vision_shape(tuned) == VisionShape(64, (8, 8))
    torch.testing.assert_close(tuned(images()), model.forward_features(images()).flatten(1, 2), rtol=0, atol=0)


def explode(module, args):
    raise AssertionError("this is behind the chosen block")


def test_no_block_behind_the_chosen_one_runs():
    body = backbone()
    body.model.blocks[1].register_forward_pre_hook(explode)
    body.model.norm.register_forward_pre_hook(explode)
    assert tower(body)(images()).shape == (2, 16, 32)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["full", "bitfit", "layernorm", "partial", "lora", "ssf", "adaptformer"])
def test_whatever_a_method_trains_gets_a_gradient(name, method):
    tuned = tower(backbone(name), {"name": method})
    generator = torch.Generator().manual_seed(2)
    for _, parameter in tuned.trainable():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    tuned(images()).square().sum().backward()
    silent = [n for n, p in tuned.trainable() if p.grad is None]
    assert not silent
    assert any(p.grad.any() for _, p in tuned.trainable())


def test_methods_are_told_only_of_the_blocks_that_run():
    tuned = tower(backbone(), {"name": "lora", "rank": 2})
    names = {name for name, _ in tuned.trainable()}
    assert len(tuned.backbone.blocks) == 1
    assert names
    with pytest.raises(ValueError, match="partial: blocks is 2"):
        tower(backbone(), {"name": "partial", "blocks": 2})


def test_prompts_are_not_handed_on():
    tuned = tower(backbone("timm_registers"), {"name": "vpt", "prompts": 3}, prefix=True)
    assert vision_shape(tuned) == VisionShape(32, (4, 4), 5)
    assert tuned(images()).shape == (2, 21, 32)


class Late(nn.Module):
    """Owns a parameter that the tokens never depend on."""

    def __init__(self, backbone):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def attach(self, backbone):
        backbone.before_finish(self.edit)

    def edit(self, x):
        return x * self.scale


def test_a_method_that_would_not_learn_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(METHODS, "late", Late)
    with pytest.raises(ValueError, match=r"late acts behind block -2 of timm_vit.*methods\.0\.scale would never learn"):
        tower(backbone(), {"name": "late"})


@pytest.mark.parametrize("method", ["lst", "vqt"])
def test_methods_that_change_how_features_are_read_are_refused_by_name(method):
    with pytest.raises(ValueError, match="(?i)" + method):
        tower(backbone(), {"name": method})


@pytest.mark.parametrize("layer", [2, -3])
def test_a_block_that_there_is_not_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer is {layer}, and timm_vit has 2 blocks: from 0 to 1, or -2 to -1"):
        Tokens(backbone(), layer)


def test_a_prefix_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="timm_siglip has neither class token nor registers"):
        Tokens(backbone("timm_siglip"), prefix=True)


def test_a_classifier_is_no_tower():
    with pytest.raises(TypeError, match="ends in the neck Tokens, and this one in NoneType"):
        vision_shape(Tuned(backbone(), [], nn.Identity()))
