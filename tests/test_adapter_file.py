"""An adapter's file says whose it is; what else it guarantees is held by test_checkpoint."""

import pytest
import torch

from vpeft import adapter_file

MANIFEST = {"format": 1, "vpeft": "0"}


def test_tensors_and_manifest_come_back(tmp_path):
    shared = torch.arange(6.0)
    adapter_file.write(tmp_path / "a.safetensors", {"a": shared, "b": shared[2:]}, MANIFEST, "mllm")
    manifest = adapter_file.read_manifest(tmp_path / "a.safetensors", "mllm", 1)
    assert manifest.items() >= MANIFEST.items()
    tensors = adapter_file.read_tensors(tmp_path / "a.safetensors", manifest)
    torch.testing.assert_close(tensors, {"a": shared, "b": shared[2:]}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "asked", "said"),
    [
        ("mllm", "vpeft", r"is an adapter of mllm; tools/chat\.py, tools/caption\.py and tools/evaluate\.py use it"),
        ("vpeft", "mllm", r"is an adapter of vpeft; tools/test\.py and tools/predict\.py use it"),
        ("other", "mllm", "is a safetensors file without a mllm manifest"),
    ],
)
def test_an_adapter_of_another_package_is_told_apart(tmp_path, key, asked, said):
    adapter_file.write(tmp_path / "a.safetensors", {"a": torch.ones(1)}, MANIFEST, key)
    with pytest.raises(ValueError, match=said):
        adapter_file.read_manifest(tmp_path / "a.safetensors", asked, 1)


def test_a_file_says_whose_adapter_it_is(tmp_path):
    path = tmp_path / "a.safetensors"
    for key, found in (("mllm", "mllm"), ("vpeft", "vpeft"), ("other", None)):
        adapter_file.write(path, {"a": torch.ones(1)}, MANIFEST, key)
        assert adapter_file.package(path) == found
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        adapter_file.package(path)
