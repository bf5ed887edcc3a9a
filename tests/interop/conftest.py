"""Tiny models of open_clip and transformers on disk."""

import json

import open_clip
import pytest
import torch
from transformers import ViTConfig, ViTModel

from tests.zoo import HF

TINY_HF = {**HF, "image_size": 32, "patch_size": 8}
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path):
    """The name of an architecture of open_clip that is small enough for a test."""
    path = tmp_path / "vpeft-tiny-interop.json"
    path.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(path)
    yield path.stem
    open_clip.factory._MODEL_CONFIGS.pop(path.stem)


@pytest.fixture
def vit(tmp_path):
    """The folder of a tiny ViT of transformers."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY_HF), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"
