"""ViT-Adapter equals the official code: each of its parts, and the whole around a ViT."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tests.golden
from tests.golden import golden, images
from vpeft.backbones import Backbone, wrap
from vpeft.dense.adapter_modules import ConvFFN, Extractor, Injector, SpatialPrior
from vpeft.dense.deform_attn import centres
from vpeft.dense.vit_adapter import ViTAdapter

SIZES, GRID = [(8, 12), (4, 6), (2, 3)], (4, 6)
DIM = {"dim": 24, "heads": 4, "points": 4, "ratio": 0.5}


def load(module: nn.Module, g: dict[str, Tensor], prefix: str) -> nn.Module:
    state = {
        key.removeprefix(f"{part}/{prefix}"): value
        for part in ("method", "buffer")
        for key, value in g.items()
        if key.startswith(f"{part}/{prefix}")
    }
    result = module.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return module.eval()


def same_gradients(module: nn.Module, g: dict[str, Tensor], prefix: str) -> None:
    for name, parameter in module.named_parameters():
        reference = g[f"grad/{prefix}{name}"]
        assert (parameter.grad - reference).abs().max() < 1e-4 * reference.abs().max(), name


def test_every_part_equals_the_official_code():
    g = golden("va_modules")
    parts = {
        "injector": load(Injector(**DIM), g, "injector."),
        "extractor": load(Extractor(**DIM, hidden=6), g, "extractor."),
        "extractor_no_ffn": load(Extractor(**DIM, hidden=0), g, "extractor_no_ffn."),
        "convffn": load(ConvFFN(24, 8), g, "convffn."),
        "spm": load(SpatialPrior(4, 24), g, "spm."),
    }
    pixels = images(64, 96)[:1].requires_grad_()
    x, c = g["input/x"].requires_grad_(), g["input/c"].requires_grad_()
    at_patches, at_maps = centres([GRID], x.device), centres(SIZES, x.device)
    outputs = {
        "injector": parts["injector"](x, at_patches, c, SIZES),
        "extractor": parts["extractor"](c, at_maps, x, GRID, SIZES),
        "extractor_no_ffn": parts["extractor_no_ffn"](c, at_maps, x, GRID, SIZES),
        "convffn": parts["convffn"](c, SIZES),
        **{f"spm_c{i}": m for i, m in enumerate(parts["spm"](pixels), start=1)},
    }
    sum((out * g[f"cotangent/{name}"]).sum() for name, out in outputs.items()).backward()
    for name, out in outputs.items():
        torch.testing.assert_close(out, g[f"output/{name}"], atol=1e-5, rtol=1e-5)
    for name, part in parts.items():
        same_gradients(part, g, f"{name}.")
    for name, tensor in {"x": x, "c": c, "image": pixels}.items():
        reference = g[f"grad/input.{name}"]
        assert (tensor.grad - reference).abs().max() < 1e-4 * reference.abs().max(), name


def golden_backbone(g: dict[str, Tensor]) -> Backbone:
    model = VisionTransformer(
        img_size=(64, 96), embed_dim=24, depth=4, num_heads=4, num_classes=0, init_values=1.0
    )  # its last norm and class token are never read
    state = {key.removeprefix("base/"): value for key, value in g.items() if key.startswith("base/")}
    first, grid = state["pos_embed"].split([1, 16], dim=1)
    grid = F.interpolate(grid.unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=GRID, mode="bicubic")
    state["pos_embed"] = torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["cls_token", "norm.weight", "norm.bias"]
    return wrap(model, "golden")


def golden_adapter(body: Backbone, g: dict[str, Tensor], **options) -> ViTAdapter:
    return load(ViTAdapter(body, heads=4, ratio=0.5, inplanes=6, **options), g, "")


def test_the_whole_equals_the_official_code():
    g = golden("va_full")
    body = golden_backbone(g)
    neck = golden_adapter(body, g)
    assert neck.interactions[0].injector.gamma.abs().min() > 0
    seen = []
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)

    maps = neck(body, images(64, 96)[:1])
    sum((m * g[f"cotangent/c{i}"]).sum() for i, m in enumerate(maps, start=1)).backward()

    assert len(seen) == 4
    for i, x in enumerate(seen):
        torch.testing.assert_close(x, g[f"output/x_after_interaction{i}"], atol=1e-5, rtol=1e-5)
    for i, m in enumerate(maps, start=1):
        torch.testing.assert_close(m, g[f"output/c{i}"], atol=5e-5, rtol=1e-5)
    same_gradients(neck, g, "")
    with safe_open(Path(tests.golden.__file__).parent / "va_full.safetensors", "pt") as file:
        assert json.loads(file.metadata()["zero_grads"]) == []
