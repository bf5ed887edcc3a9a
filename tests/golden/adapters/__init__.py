"""What the adapters of this folder stand beside: tiny models, their weights and the images that they are asked about.

None of it may change while an adapter here was saved beside it: its manifest holds the hash of the weights.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import mllm.adapter
from tests.golden import images
from tests.mllm.batches import batch
from vpeft import adapter_file, checkpoint
from vpeft.backbones import create

HERE = Path(__file__).parent
VIT, SWIN, CLIP, HF = "vpeft_generation_vit", "vpeft_generation_swin", "open_clip:vpeft_generation_clip", "hf:tower"
LANGUAGE = "hf:language"
SAID = ".outputs.safetensors"
# What a manifest says of the place of a backbone's weights, and where `prepared` puts them.
FILES = {name: f"{name.replace(':', '_')}.safetensors" for name in (VIT, SWIN, CLIP, HF)}
SIDE = 32
_CLASSES = 6  # of the classifiers that the timm models have

# timm looks for it in the module of a registered model.
default_cfgs = generate_default_cfgs(
    {
        VIT: {"classifier": "head", "first_conv": "patch_embed.proj", "num_classes": _CLASSES},
        SWIN: {"classifier": "head.fc", "first_conv": "patch_embed.proj", "num_classes": _CLASSES},
    }
)


@register_model
def vpeft_generation_vit(pretrained: bool = False, **options: Any) -> VisionTransformer:
    sizes: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return _timm(VisionTransformer(**sizes, mlp_ratio=2, num_classes=options.get("num_classes", _CLASSES)), VIT)


@register_model
def vpeft_generation_swin(pretrained: bool = False, **options: Any) -> SwinTransformer:
    sizes: dict[str, Any] = {"img_size": SIDE, "patch_size": 4, "window_size": 4, "embed_dim": 8}
    sizes |= {"depths": (2, 1), "num_heads": (1, 2), "mlp_ratio": 2}
    return _timm(SwinTransformer(**sizes, num_classes=options.get("num_classes", _CLASSES)), SWIN)


def _timm(model: Any, name: str) -> Any:
    model.pretrained_cfg = default_cfgs[name].default.to_dict()
    return model


def numbers(shape: torch.Size, start: int) -> Tensor:
    """Of a shape, between -1 and 1, no two rows alike; `start` tells tensors apart.

    Whole numbers modulo a prime, divided by a power of two: the same bits on every machine and under every torch,
    which no random generator and no sine promises, and the hash in a manifest demands.
    """
    k = torch.arange(shape.numel()) + 1
    return (((31 * k * k + 17 * k + 101 * start) % 2039 - 1019) / 1024).float().view(shape)


@torch.no_grad()
def fill(model: Any) -> Any:
    """Give every parameter of a model its numbers; what scales stays near one."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(numbers(parameter.shape, index) * (0.25 if parameter.ndim == 1 else 0.5) + scale)
    return model


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """Lay models and weights into a folder that is the working directory: the manifests name them without a path."""
    for name in ("language", "tower"):
        shutil.copytree(HERE / name, folder / name)
    file = HERE / f"{CLIP.partition(':')[2]}.json"
    open_clip.add_model_config(file)
    try:
        for name, weights in FILES.items():
            model = fill(create(name, "none").model)
            state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            if name in (VIT, SWIN):  # with the classifier that a head may ask for
                classifier = default_cfgs[name].default.classifier
                state |= {f"{classifier}.weight": numbers(torch.Size([_CLASSES, 16]), 0)}
                state |= {f"{classifier}.bias": numbers(torch.Size([_CLASSES]), 1)}
            save_file(state, folder / weights)
        language = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "language"))
        fill(language).save_pretrained(folder / "language")
        yield
    finally:
        open_clip.factory._MODEL_CONFIGS.pop(file.stem)


def pixels() -> Tensor:
    """Two images, uint8 [2, 3, 32, 32]: a corner of those of the other goldens."""
    return ((images(64)[..., :SIDE, :SIDE] * 0.5 + 0.5) * 255).round().to(torch.uint8)


@torch.no_grad()
def outputs(model: Any, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """What a model says: `logits`, of a map at every second row and column, and of a text at every sixth word."""
    seen = pixels()
    if manifest["kind"] == "mllm":
        asked = batch("ab#cD$", "#e#fghIJ$", tokens=model.connector.tokens, images=seen[[0, 1, 0]])
        return {"logits": model(asked)[asked["attention_mask"].bool()][::6].contiguous()}
    mean, std = (torch.tensor(manifest["normalization"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    logits = model((seen.float() / 255 - mean) / std)
    return {"logits": (logits[..., ::2, ::2] if logits.ndim == 4 else logits).contiguous()}


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """An adapter as Python code loads it, in the folder of `prepared`."""
    if adapter_file.package(path) == "mllm":
        return mllm.adapter.load_adapter(path)
    return checkpoint.load_adapter(path)


def found() -> list[Path]:
    """The adapters of all generations."""
    return sorted(path for path in HERE.glob("*/*.safetensors") if not path.name.endswith(SAID))


def said(path: Path) -> Path:
    """The file with the outputs that an adapter had when it was saved."""
    return path.with_name(path.stem + SAID)
