"""What all prompts on pixels do: how they stack, follow the normalization, hand gradients on, and refuse a size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.methods.pixels import IMAGENET, body, method, normalised
from tests.zoo import image, tuned
from vpeft.methods import build
from vpeft.tuned import Tuned


class Called(TorchDispatchMode):
    """Names of the operations that ran, forward and backward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", [{"name": "evp", "size": 8}, {"name": "ilm_vp", "inner": 48}], ids=lambda s: s["name"])
def test_a_prompt_before_a_shrunk_image_learns_without_a_backward_that_a_gpu_may_not_repeat(spec):
    # Runs ask for deterministic algorithms, and on a GPU the backward of torch's bicubic resizing is none.
    plain, around = build([{"name": "vp", "size": 5}, spec], body(64))
    cotangent = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    changed = plain(image())
    with Called() as backward:
        (around(changed) * cotangent).sum().backward()
    assert not [name for name in backward.names if "upsample" in name and "backward" in name]
    ours = plain.prompt.up.grad.clone()
    plain.zero_grad()
    theirs = F.interpolate(plain(image()), (48, 48), mode="bicubic", antialias=True)
    (around.surround(theirs) * cotangent).sum().backward()
    assert ours.any()
    torch.testing.assert_close(ours, plain.prompt.up.grad, atol=1e-5, rtol=1e-5)


def test_the_detector_of_that_backward_sees_it():
    images = image().requires_grad_()
    with Called() as backward:
        F.interpolate(images, (48, 48), mode="bicubic", antialias=True).sum().backward()
    assert [name for name in backward.names if "upsample" in name and "backward" in name]


@pytest.mark.parametrize("spec", [{"name": "evp", "size": 8}, {"name": "ilm_vp", "inner": 48}], ids=lambda s: s["name"])
def test_prompts_on_images_in_0_to_1_follow_the_normalization_of_the_run_and_keep_it(spec):
    plain, other = body(64), body(64)
    other.normalization = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    a, b = method(spec, plain), method(spec, other)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(a(normalised(images, IMAGENET)), normalised(b(images), IMAGENET), atol=1e-5, rtol=1e-5)
    a.load_state_dict(b.state_dict())
    torch.testing.assert_close(a(images), b(images))


def test_look_sees_images_without_prompts_and_leaves_no_gradient():
    model = tuned("timm_vit", "vp")
    plain = tuned("timm_vit", "linear")
    features = model.backbone.look(image())
    assert not features.requires_grad
    torch.testing.assert_close(features, plain.backbone(image()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "vp", "size": 32}, "vp: size is 32; a border inside images of 64x64 pixels has 1 to 31"),
        ({"name": "vp", "size": 0}, "vp: size is 0"),
        ({"name": "vp", "kind": "fixed_patch", "size": 64}, "vp: size is 64; a patch in these images has 1 to 63"),
        ({"name": "vp", "std": -1}, "vp: std is -1"),
        ({"name": "evp", "size": 40}, "evp: size is 40; a border inside"),
        ({"name": "ilm_vp", "inner": 64}, "ilm_vp: inner is 64; a square inside these images has a side of 1 to 63"),
        ({"name": "dam_vp", "size": 40}, "dam_vp: size is 40; a border inside"),
        ({"name": "dam_vp", "prompts": 0}, "dam_vp: prompts is 0"),
        ({"name": "dam_vp", "threshold": -1.0}, "threshold -1.0"),
        ({"name": "vp", "kind": "corner"}, "kind is 'corner'"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, body(64))


def test_prompts_stack_on_pixels_in_the_order_of_the_list():
    backbone = body(64)
    methods = build([{"name": "ilm_vp", "inner": 32}, {"name": "vp", "size": 5}], backbone)
    seen = []
    backbone.family.embed, embed = lambda images: seen.append(images) or embed(images), backbone.family.embed
    Tuned(backbone, methods, nn.Identity())(image())
    torch.testing.assert_close(seen[0], methods[1](methods[0](image())))
