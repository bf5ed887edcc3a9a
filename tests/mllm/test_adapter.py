"""An adapter brings the model back to the bit, beside the weights it was trained beside and no others."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vpeft
from mllm import adapt, connectors
from mllm import language as languages
from mllm.adapter import FORMAT, load_adapter, read_adapter, read_manifest, save_adapter
from mllm.merge import merged
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from tests.mllm.batches import batch
from tests.mllm.languages import language, model, tokenizer
from tests.mllm.models import CONNECTORS, NAMES, stored, vlm
from vpeft import adapter_file
from vpeft.backbones import create

LORA = {"name": "lora", "r": 2}
METHODS = [
    {"name": "frozen"},
    LORA,
    {"name": "lora", "r": 2, "use_dora": True},
    {"name": "ia3"},
    {"name": "prefix", "tokens": 2},
    {"name": "prefix", "tokens": 2, "project": 4},
    {"name": "bitfit", "create": True, "norms": True},
    {"name": "full"},
]


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path / "llama")


def manifest(name, connector, method, vision, half=False):
    return {
        "kind": "mllm",
        "seed": 1,
        "backbone": {
            "name": "test_vit",
            "pretrained": "none",
            "image_size": [64, 64],
            "layer": -2,
            "prefix": False,
            "norm": False,
            "normalization": {"name": "auto", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        },
        "method": vision,
        "connector": connector,
        "language": {"name": name, "pretrained": "auto", "dtype": "bfloat16" if half else "float32"},
        "language_method": method,
        "preparation": {},
    }


def made(name, connector=CONNECTORS[1], method=LORA, vision=None, half=False):
    """A model that has learned something, and its manifest."""
    vision = vision or {"name": "linear"}
    backbone = create("test_vit", "none", 64, 1)
    said = manifest(name, connector, method, vision, half)
    backbone.normalization = tuple(tuple(said["backbone"]["normalization"][key]) for key in ("mean", "std"))
    seen = tower(backbone, vision)
    own = languages.load(name, "auto", said["language"]["dtype"])
    adapt.apply(own, method)
    found = VLM(seen, connectors.build(connector, vision_shape(seen), own.shape), own).eval()
    generator = torch.Generator().manual_seed(2)
    for named in found.components().values():
        for _, parameter in named:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found, said


def saved(path, name, *options, **named):
    found, said = made(name, *options, **named)
    save_adapter(path, found, said)
    return found


def same(one, other, tokens):
    inputs = batch("ab#cD$", "efG$", tokens=tokens)
    torch.testing.assert_close(one(inputs), other(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("connector", CONNECTORS, ids=NAMES)
def test_every_connector_comes_back_to_the_bit(tmp_path, folder, connector):
    path = tmp_path / "a.safetensors"
    before = saved(path, folder, connector)
    after, _ = load_adapter(path)
    assert not after.training
    same(before, after, before.connector.tokens)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_comes_back_to_the_bit(tmp_path, folder, method, half):
    path = tmp_path / "a.safetensors"
    before = saved(path, folder, method=method, half=half)
    after, _ = load_adapter(path)
    same(before, after, before.connector.tokens)


@pytest.mark.parametrize("vision", [{"name": "full"}, {"name": "bi_adapter", "bottleneck": 8}, [{"name": "vpt"}]])
def test_what_was_trained_in_the_tower_comes_back(tmp_path, folder, vision):
    path = tmp_path / "a.safetensors"
    before = saved(path, folder, vision=vision)
    after, _ = load_adapter(path)
    same(before, after, before.connector.tokens)


def test_the_file_holds_what_was_trained_and_nothing_else(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    before = saved(path, folder, vision={"name": "bitfit"})
    trained = {name for named in before.components().values() for name, _ in named}
    assert set(load_file(path)) == trained
    assert len({name.partition(".")[0] for name in trained}) == 3


def test_a_frozen_connector_is_saved_too(tmp_path, folder):
    before, said = made(folder)
    before.connector.requires_grad_(False)
    save_adapter(tmp_path / "a.safetensors", before, said)
    after, _ = load_adapter(tmp_path / "a.safetensors")
    same(before, after, before.connector.tokens)


def test_the_manifest_says_what_it_takes(tmp_path, folder):
    saved(tmp_path / "a.safetensors", folder)
    said = read_manifest(tmp_path / "a.safetensors")
    own = languages.load(folder)
    assert said["format"] == FORMAT
    assert said["vpeft"] == vpeft.__version__
    assert said["language"]["weights"] == {"source": "file", "origin": "hf/llama", "sha256": own.weights.sha256}
    assert said["language"]["tokenizer"] == languages.tokenizer_hash(own.tokenizer)
    assert said["backbone"]["weights"]["sha256"] == create("test_vit", "none", 64, 1).weights.sha256


def refused(path, *options, **named):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  every caller looks at the words
        load_adapter(path, *options, **named)
    assert str(path) in str(caught.value)
    return str(caught.value)


def rewrite(path, change=None, tensors=None):
    """Save an adapter again with another manifest or other tensors, with the checksum they ought to have."""
    said, held = read_adapter(path)
    if change:
        change(said)
    adapter_file.write(path, held if tensors is None else tensors, said, "mllm")


def test_a_swapped_vision_tower_is_refused(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    rewrite(path, lambda said: said.update(seed=2))
    assert "was trained on other weights of test_vit: random seed 1 with sha256" in refused(path)
    other = create("test_vit", "none", 64, 3)
    save_file(other.model.state_dict(), tmp_path / "other.safetensors")
    said = refused(path, str(tmp_path / "other.safetensors"))
    assert "and here file other.safetensors has" in said
    assert "--weights FILE" in said


def test_other_weights_of_the_language_model_are_refused(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    stored(tmp_path / "llama", seed=5)
    said = refused(path)
    assert f"was trained beside other weights of {folder}: file hf/llama with sha256" in said
    assert "--language hf:FOLDER" in said
    load_adapter(path, language=stored(tmp_path / "moved"))


def test_a_language_model_that_is_gone_is_asked_for(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    (tmp_path / "llama" / "model.safetensors").unlink()
    assert "holds no weights as safetensors" in refused(path)


def test_another_tokenizer_is_refused(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    own = tokenizer()
    own.chat_template = "{{ messages }}"
    own.save_pretrained(tmp_path / "llama")
    assert "was trained with another tokenizer of" in refused(path)


def test_missing_and_extra_tensors_and_other_shapes_are_refused(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    _, held = read_adapter(path)
    name = "connector.layers.0.weight"
    rewrite(path, tensors={key: value for key, value in held.items() if key != name})
    assert f"it lacks 1 tensors ({name}, ...)" in refused(path)
    rewrite(path, tensors=held | {"language.more": torch.ones(1)})
    assert "it holds 1 that are not of this model (language.more, ...)" in refused(path)
    rewrite(path, tensors=held | {name: torch.ones(2, 2)})
    assert f"{name} is [2, 2] in the adapter and [32, 64] in the model" in refused(path)


@pytest.mark.parametrize("key", ["connector", "language", "backbone", "preparation"])
def test_an_incomplete_manifest_is_neither_written_nor_read(tmp_path, folder, key):
    path = tmp_path / "a.safetensors"
    found, said = made(folder)
    del said[key]
    with pytest.raises(ValueError, match="the manifest lacks"):
        save_adapter(path, found, said)
    assert not path.exists()


def test_damaged_newer_and_foreign_files_are_refused(tmp_path, folder):
    path = tmp_path / "a.safetensors"
    saved(path, folder)
    rewrite(path, lambda said: said.update(format=FORMAT + 1))
    assert "Install a newer vpeft" in refused(path)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["mllm"]) | {"format": FORMAT, "seed": 9}
    save_file(load_file(path), path, {"mllm": json.dumps(said)})
    assert "does not have the sha256 it was saved with" in refused(path)
    torch.save({"a": torch.ones(1)}, path)
    assert "is a pickle, which can run any code" in refused(path)


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "opt"])
@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "r": 2, "alpha": 4},
        {"name": "lora", "r": 2, "alpha": 4, "use_dora": True},
        {"name": "ia3"},
        {"name": "full"},
        {"name": "frozen"},
    ],
    ids=["lora", "dora", "ia3", "full", "frozen"],
)
def test_a_merged_language_model_is_plain_and_computes_the_same(family, method):
    tuned = vlm(method=method, family=family).eval()
    for _, parameter in tuned.components()["language"]:
        parameter.data += 0.05
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    plain = merged(tuned.about)
    assert type(plain.model) is type(tuned.language)
    assert set(plain.model.state_dict()) == set(model(family).state_dict())
    inputs = batch("ab#cD$", "efG$")
    beside = VLM(tuned.vision, copy.deepcopy(tuned.connector), plain).eval()
    torch.testing.assert_close(beside(inputs), tuned(inputs), rtol=1e-5, atol=1e-5)
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_merged_model_can_be_saved_and_loaded_by_transformers(tmp_path):
    plain = merged(vlm(method=LORA).about)
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    again = languages.load(f"hf:{tmp_path}").model
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, plain.model(input_ids=ids).logits, rtol=0, atol=0)


def test_merging_leaves_what_a_connector_put_into_the_layers_behind():
    tuned = vlm(CONNECTORS[NAMES.index("visual_expert")], LORA)
    plain = merged(tuned.about).model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "prefix", "tokens": 2}, "The prefix of llama cannot be merged"),
        ({"name": "bitfit", "create": True}, r"LlamaForCausalLM has no place for .*q_proj|down_proj\.bias and 9 more"),
    ],
)
def test_what_no_weights_can_hold_is_not_merged(method, said):
    own = language()
    adapt.apply(own, method)
    with pytest.raises(ValueError, match=said):
        merged(own)


def test_lora_is_not_merged_into_four_bits():
    own = language()
    own.model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="llama is held in 4 bits, into which LoRA cannot be merged"):
        merged(own)
