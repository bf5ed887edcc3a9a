"""Adapters come back as they were saved, and every file that is not one is refused in a sentence."""

import errno
import json
import pickle
import re
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vpeft
from tests.adapters import LORA, images, make, save
from vpeft import adapter_file
from vpeft.backbones import create
from vpeft.checkpoint import FORMAT, load_adapter, read_manifest, save_adapter

METHODS = [LORA, {"name": "linear"}, {"name": "bitfit"}, [{"name": "vpt", "prompts": 2}, {"name": "adaptformer"}]]


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save(path)
    return path


def rewrite(path, change=None, tensors=None, sign=True):
    """Save an adapter again with another manifest or other tensors, with the checksum they ought to have."""
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["vpeft"])
    tensors = load_file(path) if tensors is None else tensors
    if change:
        change(manifest)
    if sign:
        manifest["sha256"] = adapter_file.digest(manifest, tensors)
    save_file(tensors, path, {"format": "pt", "vpeft": json.dumps(manifest)})


def refused(path, weights=None, error=ValueError):
    with pytest.raises(error) as caught:
        load_adapter(path, weights)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS, ids=["lora", "linear", "bitfit", "list"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_loaded_adapter_computes_what_the_saved_one_did(tmp_path, method, batch_norm):
    path = tmp_path / "a.safetensors"
    saved = save(path, method=method, batch_norm=batch_norm)
    loaded, manifest = load_adapter(path)
    torch.testing.assert_close(loaded(images()), saved(images()), rtol=0, atol=0)
    assert not loaded.training
    assert manifest["classes"] == ["blue", "green", "red"]


def test_the_file_holds_what_was_trained_and_nothing_else(adapter):
    tuned, _ = make()
    tensors = load_file(adapter)
    assert set(tensors) == set(tuned.delta())
    assert not any(name.startswith("backbone.") for name in tensors)


def test_the_manifest_says_what_it_takes(adapter):
    manifest = read_manifest(adapter)
    weights = create("test_vit", "none", 32, 0).weights
    assert manifest["format"] == FORMAT
    assert manifest["vpeft"] == vpeft.__version__
    assert manifest["backbone"]["weights"] == {"source": "random", "origin": "seed 0", "sha256": weights.sha256}
    assert manifest["method"] == [LORA]
    assert re.fullmatch("[0-9a-f]{64}", manifest["sha256"])


def test_half_precision_and_scalars_survive(tmp_path):
    tuned, manifest = make(batch_norm=True)
    tuned.head.bfloat16()
    save_adapter(tmp_path / "a.safetensors", tuned, manifest)
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["head.linear.weight"].dtype == torch.bfloat16
    assert tensors["head.norm.num_batches_tracked"].shape == ()
    load_adapter(tmp_path / "a.safetensors")


def test_a_manifest_that_lacks_a_key_is_not_saved(tmp_path):
    tuned, manifest = make()
    del manifest["classes"]
    with pytest.raises(ValueError, match=r"lacks classes; it is not a complete adapter. Copy or make it again"):
        save_adapter(tmp_path / "a.safetensors", tuned, manifest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["disk", "safetensors"])
def test_a_full_disk_leaves_the_previous_adapter(adapter, monkeypatch, how):
    before = adapter.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        if how == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise adapter_file.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(adapter_file, "save_file", full)
    with pytest.raises(OSError, match=r"adapter\.safetensors could not be written: .*No space left"):
        save(adapter)
    assert adapter.read_bytes() == before
    assert list(adapter.parent.iterdir()) == [adapter]


def test_other_weights_of_the_backbone_are_refused_with_both_hashes(adapter, tmp_path):
    other = create("test_vit", "none", None, seed=1)
    file = tmp_path / "other.safetensors"
    save_file(other.model.state_dict(), file)
    sentence = refused(adapter, weights=str(file))
    assert "was trained on other weights of test_vit: random seed 0 with sha256" in sentence
    assert read_manifest(adapter)["backbone"]["weights"]["sha256"] in sentence
    assert f"file other.safetensors has {other.weights.sha256}" in sentence


def test_random_weights_that_come_out_differently_are_refused(adapter):
    rewrite(adapter, lambda manifest: manifest["backbone"].update(seed=1))
    assert "random seed 0 with sha256" in (sentence := refused(adapter))
    assert "here random seed 1 has" in sentence


def test_weights_that_moved_are_found_again(tmp_path):
    file = tmp_path / "vit.safetensors"
    save_file(create("test_vit", "none", None, seed=3).model.state_dict(), file)
    path = tmp_path / "a.safetensors"
    saved = save(path, pretrained=str(file))
    moved = file.rename(tmp_path / "moved.safetensors")
    sentence = refused(path)
    assert "its backbone test_vit cannot be rebuilt: There is no weights file" in sentence
    assert sentence.endswith("Say where its weights are now with --weights FILE.")
    loaded, _ = load_adapter(path, weights=str(moved))
    torch.testing.assert_close(loaded(images()), saved(images()), rtol=0, atol=0)


def test_missing_unexpected_and_misshapen_tensors_are_named(adapter):
    tensors = load_file(adapter)
    weight = tensors.pop("head.linear.weight")
    rewrite(adapter, tensors=tensors)
    assert "does not fit the model that its manifest describes" in (sentence := refused(adapter))
    assert "it lacks 1 tensors (head.linear.weight" in sentence
    rewrite(adapter, tensors=tensors | {"head.linear.weight": weight, "head.extra": weight.clone()})
    assert "it holds 1 that are not of this model (head.extra" in refused(adapter)
    rewrite(adapter, tensors=tensors | {"head.linear.weight": weight[:, :5].contiguous()})
    assert "head.linear.weight is [3, 5] in the adapter and [3, 64] in the model" in refused(adapter)


def test_a_newer_format_is_refused_before_anything_else_is_read(adapter):
    def newer(manifest):
        manifest.clear()
        manifest.update(format=FORMAT + 1, vpeft="9.0")

    rewrite(adapter, newer)
    assert f"has adapter format {FORMAT + 1} (written by vpeft 9.0)" in (sentence := refused(adapter))
    assert "Install a newer vpeft." in sentence


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (lambda m: m.pop("classes"), "lacks classes"),
        (lambda m: m["backbone"].pop("weights"), "lacks backbone.weights"),
        (lambda m: m["normalization"].clear(), "lacks normalization.name, normalization.mean, normalization.std"),
        (lambda m: m.update(head=None), "lacks head.init, head.batch_norm"),
    ],
)
def test_missing_manifest_keys_are_named(adapter, change, lacks):
    rewrite(adapter, change)
    assert lacks in refused(adapter)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(adapter, share):
    content = adapter.read_bytes()
    adapter.write_bytes(content[: int(len(content) * share)])
    assert "is damaged or not a safetensors file (" in refused(adapter)


def test_a_flipped_bit_is_refused_wherever_it_is(adapter):
    content = adapter.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = [*range(0, header, header // 40), *range(header, len(content), (len(content) - header) // 20)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 4
        adapter.write_bytes(changed)
        refused(adapter)


def test_a_changed_manifest_is_noticed(adapter):
    rewrite(adapter, lambda manifest: manifest["classes"].reverse(), sign=False)
    assert "its content does not have the sha256 it was saved with" in refused(adapter)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    torch.save({"w": torch.zeros(2)}, path)
    assert "is a pickle, which can run any code and is not opened" in refused(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    assert "is a pickle" in refused(path)
    path.write_text("hello, this is text")
    assert "is damaged or not a safetensors file" in refused(path)
    save_file({"w": torch.zeros(2)}, path)
    assert "is a safetensors file without a vpeft manifest" in refused(path)
    save_file({"w": torch.zeros(2)}, path, {"vpeft": "{"})
    assert "its manifest cannot be read" in refused(path)
    save_file({"w": torch.zeros(2)}, path, {"vpeft": "[1]"})
    assert "its manifest cannot be read" in refused(path)


def test_a_missing_file_and_a_folder_name_what_is_there(adapter):
    sentence = refused(adapter.with_name("adaptor.safetensors"), error=FileNotFoundError)
    assert sentence.endswith(f"did you mean '{adapter}'?")
    assert f"is a folder, not an adapter; did you mean '{adapter}'?" in refused(adapter.parent)


def test_no_length_of_the_header_makes_an_adapter_look_like_a_pickle(tmp_path):
    path, starts = tmp_path / "adapter.safetensors", set()
    for padding in range(0, 600, 8):
        save_file({"w": torch.zeros(1)}, path, metadata={"x": "y" * padding})
        starts.add(path.read_bytes()[:1])
        adapter_file.check_file(path)
    assert b"\x80" in starts
