"""Towers of transformers: what a folder may ask for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo import backbone
from vpeft.backbones import create, load_hf


def test_code_that_comes_with_a_model_is_not_run_even_if_someone_says_yes(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    config = {"model_type": "unknown", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"holds no config\.json that transformers can read"):
        create(f"hf:{tmp_path}", pretrained="none")
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(tmp_path):
    backbone("hf_dinov2").model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["layernorm.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack tensors of this model: layernorm\.weight \(1 in all\)"):
        create(f"hf:{tmp_path}")


def test_weights_without_what_no_output_follows_from_are_taken(tmp_path):
    whole = backbone("hf_dinov2")
    whole.model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["embeddings.mask_token"]
    save_file(state, file, {"format": "pt"})
    images = torch.randn(2, 3, *whole.image_size)
    for pretrained in ("auto", str(file)):
        found = create(f"hf:{tmp_path}", pretrained).eval()
        torch.testing.assert_close(found(images), whole.eval()(images), rtol=0, atol=0)


def test_memory_that_is_short_is_not_the_fault_of_a_folder(tmp_path, monkeypatch):
    backbone("hf_dinov2").model.save_pretrained(tmp_path)

    def short(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(load_hf.Dinov2Model, "from_pretrained", short)
    with pytest.raises(torch.OutOfMemoryError):
        create(f"hf:{tmp_path}")


@pytest.mark.parametrize("layers", [0, 2**31])
def test_a_number_of_layers_that_nobody_has_is_refused_at_once(tmp_path, layers):
    backbone("hf_clip").model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match=f"has num_hidden_layers {layers}; a number from 1 to 1,000 is expected"):
        create(f"hf:{tmp_path}", "none")
