"""Merged models load in their vendors' own libraries and compute what adapter and backbone compute together."""

import json
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from tests.adapters import images, save
from tests.interop.conftest import TINY_HF
from vpeft.merge import merge

LORA = {"name": "lora", "rank": 2, "targets": ["q", "v", "proj", "fc1"]}
SSF = {"name": "ssf"}
CLASSIFIERS: dict[str, Any] = {
    "vit": lambda: ViTModel(ViTConfig(**TINY_HF), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY_HF)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY_HF, num_register_tokens=2)),
}
TOWERS: dict[str, Any] = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**TINY_HF)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**TINY_HF)),
}


def close(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def on_disk(tmp_path: Any, built: Any) -> str:
    torch.manual_seed(0)
    built().save_pretrained(tmp_path / "tower")
    return f"hf:{tmp_path / 'tower'}"


@pytest.mark.parametrize("method", [LORA, SSF], ids=["lora", "ssf"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_vit_or_dinov2_becomes_an_image_classifier_of_transformers(tmp_path, kind, method):
    name = on_disk(tmp_path, CLASSIFIERS[kind])
    tuned = save(tmp_path / "a.safetensors", method=method, backbone=name, pretrained="auto")
    files, how = merge(tmp_path / "a.safetensors", tmp_path / "out")
    assert files == [tmp_path / "out"]
    assert f"ForImageClassification.from_pretrained('{tmp_path / 'out'}'), or the tower alone with AutoModel" in how
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    tower = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(model(images()).logits, tuned(images()))
        close(tower(images()).last_hidden_state[:, 0], tuned.backbone(images()))
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_clip_or_siglip_tower_becomes_a_folder_with_the_head_beside(tmp_path, kind):
    name = on_disk(tmp_path, TOWERS[kind])
    tuned = save(tmp_path / "a.safetensors", method=LORA, backbone=name, pretrained="auto")
    _, how = merge(tmp_path / "a.safetensors", tmp_path / "out")
    assert f"{tmp_path / 'out' / 'head.safetensors'} is the head, a vpeft.heads.LinearHead" in how
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        features = model(images()).pooler_output
        close(features, tuned.backbone(images()))
        tuned.head.load_state_dict(load_file(tmp_path / "out" / "head.safetensors"))
        close(tuned.head(features), tuned(images()))


def test_a_head_with_batch_norm_goes_beside_the_tower(tmp_path, vit):
    tuned = save(tmp_path / "a.safetensors", backbone=f"hf:{vit}", pretrained="auto", batch_norm=True)
    merge(tmp_path / "a.safetensors", tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["ViTModel"]
    assert set(load_file(tmp_path / "out" / "head.safetensors")) == set(tuned.head.state_dict())


def test_the_folder_prepares_images_as_the_adapter_does(tmp_path, vit):
    save(tmp_path / "a.safetensors", backbone=f"hf:{vit}", pretrained="auto")
    merge(tmp_path / "a.safetensors", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    close(pixels, (image[None].float() / 255 - 0.5) / 0.5)
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 32, "width": 32}
    assert saved["do_center_crop"] is False


def test_a_tower_of_transformers_is_one_file_too(tmp_path, vit):
    tuned = save(tmp_path / "a.safetensors", backbone=f"hf:{vit}", pretrained="auto")
    merge(tmp_path / "a.safetensors", tmp_path / "merged.safetensors")
    model = ViTModel(ViTConfig(**TINY_HF), add_pooling_layer=False).eval()
    model.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=True)
    with torch.no_grad():
        close(model(images()).last_hidden_state[:, 0], tuned.backbone(images()))


@pytest.mark.parametrize("method", [LORA, SSF], ids=["lora", "ssf"])
def test_open_clip_loads_both_towers(tmp_path, tiny_clip, method):
    torch.manual_seed(2)
    whole = open_clip.create_model(tiny_clip)
    save_file({name: tensor.clone() for name, tensor in whole.state_dict().items()}, tmp_path / "clip.safetensors")
    tuned = save(
        tmp_path / "a.safetensors",
        method=method,
        backbone=f"open_clip:{tiny_clip}",
        pretrained=str(tmp_path / "clip.safetensors"),
    )
    merged = tmp_path / "merged.safetensors"
    files, how = merge(tmp_path / "a.safetensors", merged)
    assert files == [merged, tmp_path / "merged.head.safetensors"]
    assert f"open_clip.create_model('{tiny_clip}', pretrained='{merged}', force_image_size=(32, 32))" in how
    model: Any = open_clip.create_model(tiny_clip, pretrained=str(merged), force_image_size=(32, 32)).eval()
    words = torch.randint(1, 64, (2, 8))
    with torch.no_grad():
        projected = tuned.backbone(images()) @ tuned.backbone.model.proj
        close(model.encode_image(images()), projected)
        close(model.encode_text(words), whole.eval().encode_text(words))  # type: ignore[operator]


def test_a_visual_tower_that_came_alone_stays_alone(tmp_path, tiny_clip):
    whole: Any = open_clip.create_model(tiny_clip)
    save_file({name: t.clone() for name, t in whole.visual.state_dict().items()}, tmp_path / "visual.safetensors")
    file = str(tmp_path / "visual.safetensors")
    tuned = save(tmp_path / "a.safetensors", backbone=f"open_clip:{tiny_clip}", pretrained=file)
    _, how = merge(tmp_path / "a.safetensors", tmp_path / "merged.safetensors")
    assert "is the visual tower alone, as the weights came without a text tower" in how
    state = load_file(tmp_path / "merged.safetensors")
    assert set(state) == set(whole.visual.state_dict())
    model: Any = open_clip.create_model(tiny_clip, force_image_size=(32, 32)).eval()
    model.visual.load_state_dict(state, strict=True)
    with torch.no_grad():
        close(model.encode_image(images()), tuned.backbone(images()) @ tuned.backbone.model.proj)


def test_a_folder_is_for_transformers_alone(tmp_path):
    save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"it has to end in .safetensors. A folder is written for towers of transf"):
        merge(tmp_path / "a.safetensors", tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(tmp_path, vit):
    save(tmp_path / "a.safetensors", backbone=f"hf:{vit}", pretrained="auto")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"out is there already; give the name of a new folder, or remove it"):
        merge(tmp_path / "a.safetensors", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
