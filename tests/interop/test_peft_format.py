"""A folder for peft computes in peft what the adapter computes, and what peft saves computes the same as an adapter."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification, ViTModel

from tests.adapters import NAME, images, make, save
from vpeft.backbones import create
from vpeft.checkpoint import load_adapter
from vpeft.interop import imported, peft_format
from vpeft.interop.imported import Preparation
from vpeft.interop.peft_names import located

METHODS: dict[str, dict[str, Any]] = {
    "lora_qv": {"name": "lora", "rank": 2, "alpha": 3.0},
    "lora_shared": {"name": "lora", "rank": 2, "targets": ["qkv"], "shared_a": True, "dropout": 0.1},
    "lora_shared_qv": {"name": "lora", "rank": 2, "targets": ["q", "v"], "shared_a": True},
    "lora_all": {"name": "lora", "rank": 2, "targets": ["q", "k", "v", "proj", "fc1", "fc2"]},
    "lora_qkv": {"name": "lora", "rank": 3, "alpha": 1.0, "targets": ["qkv", "proj"]},
    "dora": {"name": "dora", "rank": 2, "targets": ["q", "v", "fc1"]},
    "ia3": {"name": "ia3"},
}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def plain_timm(seed: int = 0) -> Any:
    """The frozen backbone of tests.adapters, with an untrained head."""
    model: Any = timm.create_model(NAME, num_classes=3, img_size=(32, 32))
    model.load_state_dict(create(NAME, "none", 32, seed).model.state_dict(), strict=False)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_an_adapter_onto_timms_plain_model(tmp_path, method):
    tuned = save(tmp_path / "a.safetensors", method=METHODS[method])
    written, how = peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    assert written == [tmp_path / "out"]
    assert f"timm.create_model('{NAME}', num_classes=3, img_size=(32, 32)); its head comes with it" in how
    model = peft.PeftModel.from_pretrained(plain_timm(), str(tmp_path / "out")).eval()
    with torch.no_grad():
        plain: Any = model.base_model.model
        close(plain.forward_head(plain.forward_features(images()), pre_logits=True), tuned.backbone(images()))
        close(model(images()), tuned(images()))


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_an_adapter_onto_a_plain_model_of_transformers(tmp_path, vit, method):
    tuned = save(tmp_path / "a.safetensors", method=METHODS[method], backbone=f"hf:{vit}", pretrained="auto")
    _, how = peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    assert f"{tmp_path / 'out' / 'head.safetensors'} is the head, a vpeft.heads.LinearHead" in how
    plain = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        close(model(images()).last_hidden_state[:, 0], tuned.backbone(images()))
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["linear.weight"], tuned.head.state_dict()["linear.weight"])


def test_the_folder_says_classes_and_preprocessing(tmp_path):
    from safetensors import safe_open

    save(tmp_path / "a.safetensors")
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["vpeft_exported"])
    assert about["classes"] == ["blue", "green", "red"]
    assert about["normalization"]["name"] == "inception"


def from_peft(tmp_path: Path, model: Any, config: Any, backbone: str = NAME, pretrained: str = "none") -> Any:
    """What peft trained (away from its start) and saved, as a model of ours; and peft's own."""
    torch.manual_seed(1)
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(parameter + noise if "magnitude" in name or "ia3" in name else noise)
    theirs.save_pretrained(str(tmp_path / "peft"))
    body = create(backbone, pretrained, 32)
    found = peft_format.read(tmp_path / "peft", body)
    notes = imported.save(found, body, pretrained, tmp_path / "ours.safetensors", Preparation(classes=["a", "b", "c"]))
    return load_adapter(tmp_path / "ours.safetensors")[0], theirs, notes


LORA = {"target_modules": ["qkv", "fc1"], "r": 3, "lora_alpha": 5, "init_lora_weights": False}


@pytest.mark.parametrize(
    "options",
    [
        LORA,
        LORA | {"use_rslora": True},
        LORA | {"use_dora": True},
        LORA | {"rank_pattern": {"qkv": 5}, "alpha_pattern": {"blocks.1.mlp.fc1": 16}},
        LORA | {"rank_pattern": {"fc1": 2}, "use_rslora": True},
        LORA | {"layers_to_transform": [1], "layers_pattern": "blocks"},
        LORA | {"rank_pattern": {"fc1": 2}, "use_dora": True, "layers_to_transform": [0], "layers_pattern": "blocks"},
    ],
    ids=["plain", "rslora", "dora", "patterns", "patterns_rslora", "one_block", "dora_one_block"],
)
def test_lora_that_peft_trained_on_timm_becomes_an_adapter(tmp_path, options):
    config = peft.LoraConfig(**options, modules_to_save=["head"])
    ours, theirs, _ = from_peft(tmp_path, plain_timm(), config)
    with torch.no_grad():
        close(ours(images()), theirs(images()))


def test_ia3_that_peft_trained_becomes_an_adapter(tmp_path, vit):
    plain = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    config = peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"])
    ours, theirs, notes = from_peft(tmp_path, plain, config, f"hf:{vit}", "auto")
    with torch.no_grad():
        close(ours.backbone(images()), theirs(images()).last_hidden_state[:, 0])
    assert any("the head is not in the file" in note for note in notes)


def test_an_image_classifier_of_transformers_brings_its_head(tmp_path, vit):
    model = ViTForImageClassification.from_pretrained(vit, num_labels=3)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    ours, theirs, _ = from_peft(tmp_path, model, config, f"hf:{vit}", "auto")
    with torch.no_grad():
        close(ours(images()), theirs(images()).logits)


def test_names_of_earlier_releases_of_transformers_are_known(tmp_path, vit):
    model = ViTForImageClassification.from_pretrained(vit, num_labels=3)
    targets = ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
    config = peft.LoraConfig(target_modules=targets, modules_to_save=["classifier"])
    ours, _, _ = from_peft(tmp_path, model, config, f"hf:{vit}", "auto")
    former = {
        ".layers.": ".encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    file, renamed = tmp_path / "peft" / "adapter_model.safetensors", {}
    for key, tensor in load_file(file).items():
        for present, past in former.items():
            key = key.replace(present, past)
        renamed[key] = tensor
    save_file(renamed, file)
    found = peft_format.read(tmp_path / "peft", create(f"hf:{vit}", "auto", 32))
    state = ours.methods[0].state_dict()
    assert set(found.state) == set(state)
    assert all(torch.equal(found.state[key], state[key]) for key in state)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_peft_to_ours_to_peft_is_the_same_folder(tmp_path, options):
    from_peft(tmp_path, plain_timm(), peft.LoraConfig(**LORA, **options, modules_to_save=["head"]))
    peft_format.export(tmp_path / "ours.safetensors", tmp_path / "again")
    first, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "again"))
    assert set(first) == set(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    before, after = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "again"))
    scale = before["r"] ** 0.5 if options.get("use_rslora") else before["r"]
    assert after["lora_alpha"] / after["r"] == pytest.approx(before["lora_alpha"] / scale)
    assert after["r"] == before["r"]


def test_two_groups_of_rows_come_back_as_one_of_twice_the_rank(tmp_path):
    manifest = back_and_forth(tmp_path, METHODS["lora_qv"])
    assert manifest["method"] == [
        {"name": "lora", "rank": 4, "alpha": 6.0, "targets": ["qkv"], "shared_a": False, "dropout": 0.0}
    ]


@pytest.mark.parametrize("method", ["lora_all", "lora_shared", "dora", "ia3"])
def test_ours_to_peft_to_ours_computes_the_same(tmp_path, method):
    back_and_forth(tmp_path, METHODS[method])


def back_and_forth(tmp_path: Path, method: dict[str, Any]) -> dict[str, Any]:
    tuned = save(tmp_path / "a.safetensors", method=method)
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    body = create(NAME, "none", 32)
    imported.save(peft_format.read(tmp_path / "out", body), body, "none", tmp_path / "b.safetensors")
    again, manifest = load_adapter(tmp_path / "b.safetensors")
    with torch.no_grad():
        close(again(images()), tuned(images()))
    return manifest


def test_the_mlp_of_an_open_clip_tower_goes_to_peft(tmp_path, tiny_clip):
    method = {"name": "lora", "rank": 2, "targets": ["fc1", "fc2"]}
    tuned = save(tmp_path / "a.safetensors", method=method, backbone=f"open_clip:{tiny_clip}")
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    plain: Any = create(f"open_clip:{tiny_clip}", "none", 32).model
    model: Any = peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    with torch.no_grad():
        close(model(images()), tuned.backbone(images()) @ plain.proj)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ("timm_model.blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ("visual.trunk.blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ("visual.transformer.resblocks.0.mlp.c_fc", "transformer.resblocks.0.mlp.c_fc"),
        ("vision_model.encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.q_proj"),
        ("dinov2.encoder.layer.0.attention.attention.query", "encoder.layer.0.attention.q_proj"),
        ("text_model.encoder.layers.0.self_attn.q_proj", None),
        ("head", None),
    ],
)
def test_what_stands_around_a_tower_is_taken_off_its_names(theirs, ours):
    known = {
        "blocks.0.attn.qkv",
        "transformer.resblocks.0.mlp.c_fc",
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layer.0.attention.q_proj",
    }
    assert located(theirs, known) == ours


def test_a_folder_of_an_earlier_release_of_peft_is_read(tmp_path):
    save(tmp_path / "a.safetensors")
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    file, body = tmp_path / "out" / "adapter_model.safetensors", create(NAME, "none", 32)
    torch.save(load_file(file), file.with_suffix(".bin"))
    first = peft_format.read(tmp_path / "out", body)
    file.unlink()
    second = peft_format.read(tmp_path / "out", body)
    assert second.source["file"] == "out/adapter_model.bin"
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)


def test_a_head_that_is_no_plain_classifier_goes_beside(tmp_path):
    tuned, _ = make(batch_norm=True)
    save(tmp_path / "a.safetensors", batch_norm=True)
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None
    assert set(load_file(tmp_path / "out" / "head.safetensors")) == set(tuned.head.state_dict())
