"""The backbone of the golden files as a model that timm knows by name, so that an adapter of it can be loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.golden import golden


@register_model
def vpeft_golden_vit(pretrained: bool = False, **options: Any) -> VisionTransformer:
    model: Any = VisionTransformer(
        img_size=options.get("img_size", 224),
        patch_size=16,
        embed_dim=32,
        depth=3,
        num_heads=4,
        num_classes=options.get("num_classes", 5),
    )
    model.pretrained_cfg = {"classifier": "head", "first_conv": "patch_embed.proj"}
    return model


@register_model
def vpeft_golden_swin(pretrained: bool = False, **options: Any) -> SwinTransformer:
    return _swin(16, (2, 1), (2, 4), options)


@register_model
def vpeft_golden_swin_vpt(pretrained: bool = False, **options: Any) -> SwinTransformer:
    return _swin(8, (2, 2, 1, 1), (1, 2, 2, 4), options)


def _swin(dim: int, depths: tuple[int, ...], heads: tuple[int, ...], options: dict[str, Any]) -> SwinTransformer:
    model: Any = SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=4,
        embed_dim=dim,
        depths=depths,
        num_heads=heads,
        mlp_ratio=2,
        num_classes=options.get("num_classes", 5),
    )
    model.pretrained_cfg = {"classifier": "head.fc", "first_conv": "patch_embed.proj"}
    return model


def weights(folder: Path, base: str = "cls_base") -> Path:
    """A file of the golden backbone without its head."""
    path = folder / f"{base}.safetensors"
    save_file({key: value for key, value in golden(base).items() if not key.startswith("head.")}, path)
    return path


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What begins with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
