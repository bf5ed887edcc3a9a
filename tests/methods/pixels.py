"""What tests of prompts on pixels share: a small ViT and its normalization, a method built for it, and comparisons."""

import torch
from timm.models.vision_transformer import VisionTransformer

from vpeft.backbones import Preprocessing, wrap
from vpeft.methods import build

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
SIDES = ("up", "down", "left", "right")


def body(side, preprocessing=IMAGENET):
    model = VisionTransformer(img_size=side, patch_size=side, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    return wrap(model, preprocessing=preprocessing)


def method(spec, backbone):
    (built,) = build(spec, backbone)
    return built


def close(parameter, gradient):
    """The parameter's gradient is that one, to 1e-4 of its largest entry."""
    difference = (parameter.grad - gradient).abs().max() / gradient.abs().max()
    assert difference < 1e-4, difference


def normalised(images, like):
    """Images in 0 to 1 as a backbone of that preprocessing takes them."""
    return (images - torch.tensor(like.mean).view(3, 1, 1)) / torch.tensor(like.std).view(3, 1, 1)
