"""Folders of peft that cannot be read, adapters that cannot be written as one, and the sentence for each of them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import NAME, save
from vpeft.backbones import create
from vpeft.interop import peft_format


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "holds LOHA of peft; what can be read is LORA, IA3"),
        ({"bias": "all"}, "sets bias: 'all'"),
        ({"lora_bias": True}, "sets lora_bias: True"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights: 'pissa', which changes the backbone's own weights"),
        ({"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
    ],
)
def test_variants_are_refused_by_name(tmp_path, change, said):
    save(tmp_path / "a.safetensors")
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    path = tmp_path / "out" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        peft_format.read(tmp_path / "out", create(NAME, "none", 32))


def _drop(state: dict[str, torch.Tensor], key: str) -> None:
    del state[f"base_model.model.{key}"]


def _put(state: dict[str, torch.Tensor], key: str, *shape: int) -> None:
    state[f"base_model.model.{key}"] = torch.zeros(shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: _drop(s, "blocks.1.attn.qkv.lora_B.weight"), "blocks.1.attn.qkv has lora_A; lora_B is lacking"),
        (lambda s: _put(s, "blocks.1.attn.qkv.lora_B.weight", 5, 4), r"A \[4, 64\] and B \[5, 4\], and .* 192 x 64"),
        (lambda s: _put(s, "blocks.1.attn.qkv.lora_A.weight", 3, 64), "A of rank 3 and B of rank 4"),
        (
            lambda s: _put(s, "blocks.9.attn.qkv.lora_A.weight", 4, 64),
            "changes blocks.9.attn.qkv, which test_vit has not",
        ),
        (lambda s: _put(s, "text_model.x.lora_A.weight", 4, 64), "changes text_model.x"),
        (lambda s: _put(s, "norm.weight", 64), "holds norm.weight in modules_to_save"),
        (lambda s: [s.pop(key) for key in list(s) if "lora" in key], "changes nothing"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_words(tmp_path, change, said):
    save(tmp_path / "a.safetensors")
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    file = tmp_path / "out" / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(ValueError, match=said):
        peft_format.read(tmp_path / "out", create(NAME, "none", 32))


def test_magnitudes_of_another_size_are_refused(tmp_path):
    save(tmp_path / "a.safetensors", method={"name": "dora", "rank": 2, "targets": ["q", "v", "fc1"]})
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    file = tmp_path / "out" / "adapter_model.safetensors"
    key = "base_model.model.blocks.0.mlp.fc1.lora_magnitude_vector"
    save_file(load_file(file) | {key: torch.ones(3)}, file)
    with pytest.raises(ValueError, match=r"blocks.0.mlp.fc1 has magnitudes \[3\], and 192 are needed"):
        peft_format.read(tmp_path / "out", create(NAME, "none", 32))


def test_ia3_over_queries_or_elsewhere_is_refused(tmp_path):
    save(tmp_path / "a.safetensors", method={"name": "ia3"})
    peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
    file, body = tmp_path / "out" / "adapter_model.safetensors", create(NAME, "none", 32)
    state = load_file(file)
    key = "base_model.model.blocks.0.attn.qkv.ia3_l"
    save_file(state | {key: state[key] * 2}, file)
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv scales queries too"):
        peft_format.read(tmp_path / "out", body)
    save_file(state | {key: state[key].T.contiguous()}, file)
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv has ia3_l \[1, 192\]; ia3_l 192 x 1, over its outputs"):
        peft_format.read(tmp_path / "out", body)
    save_file(state | {"base_model.model.blocks.0.attn.proj.ia3_l": torch.ones(64, 1)}, file)
    with pytest.raises(ValueError, match=r"blocks.0.attn.proj is scaled"):
        peft_format.read(tmp_path / "out", body)


def test_folders_that_are_none_are_refused(tmp_path):
    body = create(NAME, "none", 32)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config.json; give the folder that peft saved"):
        peft_format.read(tmp_path, body)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is not JSON"):
        peft_format.read(tmp_path, body)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is not a configuration of peft"):
        peft_format.read(tmp_path, body)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model.safetensors"):
        peft_format.read(tmp_path, body)


def test_what_has_no_place_in_the_format_is_refused(tmp_path, tiny_clip):
    for name, method in {"vpt": {"name": "vpt", "prompts": 2}, "two": [{"name": "lora"}, {"name": "ia3"}]}.items():
        save(tmp_path / f"{name}.safetensors", method=method)
    with pytest.raises(ValueError, match="has vpt; peft's format is written for one of lora, dora, ia3"):
        peft_format.export(tmp_path / "vpt.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has lora\+ia3; peft's format"):
        peft_format.export(tmp_path / "two.safetensors", tmp_path / "out")
    save(tmp_path / "clip.safetensors", backbone=f"open_clip:{tiny_clip}")
    with pytest.raises(
        ValueError, match=r"changes in_proj_weight of open_clip:vpeft-tiny-interop, which reads it as a tensor"
    ):
        peft_format.export(tmp_path / "clip.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    save(tmp_path / "a.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out is there already"):
        peft_format.export(tmp_path / "a.safetensors", tmp_path / "out")
