import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.adapters import NAME, images, save
from tests.mllm.adapters import saved as save_mllm
from vpeft.backbones import create


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "rank": 2, "targets": ["qkv", "proj", "fc1", "fc2"]},
        {"name": "linear"},
        {"name": "bitfit"},
        {"name": "full"},
    ],
    ids=lambda method: method["name"],
)
def test_the_merged_file_is_a_plain_timm_model(tool, tmp_path, method):
    saved = save(tmp_path / "a.safetensors", method=method)
    merged = tmp_path / "merged.safetensors"
    ended = tool("merge", tmp_path / "a.safetensors", "-o", merged)
    assert ended.code == 0, ended.err
    assert f"timm.create_model('{NAME}', num_classes=3, img_size=(32, 32))" in ended.out
    model = timm.create_model(NAME, num_classes=3, img_size=(32, 32)).eval()
    model.load_state_dict(load_file(merged), strict=True)
    torch.testing.assert_close(model(images()), saved(images()), rtol=0, atol=1e-5)


def test_the_metadata_records_classes_and_preprocessing(tool, adapter, tmp_path):
    tool("merge", adapter, "-o", tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["vpeft_merged"])
    assert metadata["format"] == "pt"
    assert about["classes"] == ["blue", "green", "red"]
    assert about["normalization"] == {"name": "inception", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert about["backbone"]["name"] == NAME


def test_a_head_that_is_no_plain_classifier_goes_beside_it(tool, tmp_path):
    saved = save(tmp_path / "a.safetensors", batch_norm=True)
    ended = tool("merge", tmp_path / "a.safetensors", "-o", tmp_path / "merged.safetensors")
    assert ended.code == 0, ended.err
    head = tmp_path / "merged.head.safetensors"
    assert f"{head} is the head" in ended.out
    body = create(NAME, "none", 32, seed=5)
    body.model.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=True)
    assert set(load_file(head)) == set(saved.head.state_dict())
    torch.testing.assert_close(saved.head(body(images())), saved(images()), rtol=0, atol=1e-5)


def test_what_cannot_be_merged_is_refused_by_name(tool, tmp_path):
    save(tmp_path / "a.safetensors", method=[{"name": "lora"}, {"name": "vpt", "prompts": 2}])
    ended = tool("merge", tmp_path / "a.safetensors", "-o", tmp_path / "merged.safetensors")
    assert ended.code == 2
    assert f"error: {tmp_path / 'a.safetensors'}: VPT cannot be merged" in ended.err
    assert not (tmp_path / "merged.safetensors").exists()


def test_wrong_input_is_one_sentence(tool, adapter, tmp_path):
    assert tool("merge", adapter).err == (
        "error: command line: the following arguments are required: -o/--output; see tools/merge.py --help\n"
    )
    ended = tool("merge", adapter, "-o", tmp_path / "merged.pt")
    assert ended.code == 2
    assert "merged.pt is not a name for the merged weights; it has to end in .safetensors." in ended.err


def test_a_multimodal_adapter_becomes_a_folder_of_transformers(tool, tmp_path):
    ended = tool("merge", save_mllm(tmp_path), "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert f"wrote {tmp_path / 'out'}" in ended.out
    assert f"load it with LlavaForConditionalGeneration.from_pretrained('{tmp_path / 'out'}')" in ended.out
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")).__name__.startswith("Llava")
    again = tool("merge", tmp_path / "adapter.safetensors", "-o", tmp_path / "out")
    assert (again.code, "is there already" in again.err) == (2, True)


def test_a_connector_that_no_container_holds_is_refused(tool, tmp_path):
    path = save_mllm(tmp_path, {"name": "avg_pool", "tokens": 4})
    ended = tool("merge", path, "-o", tmp_path / "out")
    assert ended.code == 2
    assert ended.err == (
        f"error: {path}: a model with the connector avg_pool cannot be exported: LLaVA's container hands on every "
        "token that it reads and averages none. Use the adapter as it is, with tools/chat.py or tools/evaluate.py.\n"
    )


def test_a_language_model_is_only_given_with_a_multimodal_adapter(tool, adapter, tmp_path):
    ended = tool("merge", adapter, "-o", tmp_path / "merged.safetensors", "--language", "hf:x")
    assert ended.code == 2
    assert "--language is for multimodal adapters, and this is none" in ended.err
