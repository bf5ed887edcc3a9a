"""Readers of the golden tensors beside this file; see README.md."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vpeft.backbones import Backbone, wrap

_HERE = Path(__file__).parent
_IMAGES_SHA256 = {
    (224, 224): "42cfaa58b7fc5a87c4f9dc73ea187225a5e2d93d1ffdff39cde0ce0709d32ebb",
    (64, 64): "c41b3748fbdda82d4882bbdcc5d0d0c6932959c46e9f6fb5b67ab7878894fae5",
    (36, 52): "af14c90536b1ef819ab5704ca04235ccc53abce7508a66fca452e121d8f1d875",
    (64, 96): "de99cca8812a426cfebbb09b417f231654ee5f185707f7d4ba50e34be62cd8be",
    (96, 128): "01a68bc8b645a0f64f9f82a0c7ea6600df4af66a71571d8cb01f68c28b9d3170",
}


def images(height: int = 224, width: int | None = None) -> Tensor:
    """The two images [2, 3, height, width] of the files: 224 for cls_*, 64 or 36 x 52 for swin_*; None is a square."""
    width = width or height

    def wave(n: Tensor, p: int) -> Tensor:
        return (n % (2 * p) - p).abs()

    b = torch.arange(2).view(2, 1, 1, 1)
    c = torch.arange(3).view(1, 3, 1, 1)
    y = torch.arange(height).view(1, 1, height, 1)
    x = torch.arange(width).view(1, 1, 1, width)
    u8 = wave(2 * x + y + 37 * c + 53 * b, 64) + wave(3 * y - x + 29 * c, 96) + wave(x * y // 32 + 13 * c, 95)
    assert hashlib.sha256(u8.to(torch.uint8).numpy().tobytes()).hexdigest() == _IMAGES_SHA256[height, width]
    return (u8.float() / 255 - 0.5) / 0.5


def golden(name: str) -> dict[str, Tensor]:
    return load_file(_HERE / f"{name}.safetensors")


def backbone() -> Backbone:
    """The frozen ViT of every cls_* file, without its head."""
    model = VisionTransformer(img_size=224, patch_size=16, embed_dim=32, depth=3, num_heads=4, num_classes=0)
    state = golden("cls_base")
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    return wrap(model, "golden")


def swin_backbone(base: str, embed_dim: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> Backbone:
    """The frozen Swin of a swin_* file, without its head: 64 pixels, patches of 4, windows of 4, MLP ratio 2."""
    model = SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=4,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=heads,
        mlp_ratio=2,
        num_classes=0,
    )
    state = golden(base)
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    return wrap(model, "golden")
