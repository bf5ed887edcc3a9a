import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vpeft  # noqa: F401  (before timm)
from vpeft.backbones import create
from vpeft.backbones.weights import check_file, content_hash, hub_unreachable, load_file


class Malicious:
    """A pickle that makes a file where it is loaded without care."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def google_npz(model, path, prefix=""):
    """A timm ViT in the layout of the original checkpoints (github.com/google-research/vision_transformer)."""
    w = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    out = {
        "cls": w["cls_token"],
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
        "head/kernel": w["head.weight"].T,
        "head/bias": w["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for role, weight, bias in zip(
            ("query", "key", "value"),
            np.split(w[ours + "attn.qkv.weight"], 3),
            np.split(w[ours + "attn.qkv.bias"], 3),
            strict=True,
        ):
            out[f"{attention}{role}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
            out[f"{attention}{role}/bias"] = bias.reshape(heads, -1)
        projection = w[ours + "attn.proj.weight"].T
        out[f"{attention}out/kernel"] = projection.reshape(heads, -1, projection.shape[1])
        out[f"{attention}out/bias"] = w[ours + "attn.proj.bias"]
        for layer in (1, 2):
            out[f"{theirs}MlpBlock_3/Dense_{layer - 1}/kernel"] = w[f"{ours}mlp.fc{layer}.weight"].T
            out[f"{theirs}MlpBlock_3/Dense_{layer - 1}/bias"] = w[f"{ours}mlp.fc{layer}.bias"]
        for norm, index in (("norm1", 0), ("norm2", 2)):
            out[f"{theirs}LayerNorm_{index}/scale"] = w[f"{ours}{norm}.weight"]
            out[f"{theirs}LayerNorm_{index}/bias"] = w[f"{ours}{norm}.bias"]
    np.savez(path, **{prefix + name: value for name, value in out.items()})


def test_content_hash_is_that_of_the_values_whatever_the_file(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": dict(reversed(state.items()))}, tmp_path / "w.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.load_state_dict(state)
    hashes = {content_hash(load_file(tmp_path / name)) for name in ("w.safetensors", "w.pth")} | {content_hash(model)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w["0.weight"][1, 2].add_(1e-6),
        lambda w: w.update({"0.weight": w["0.weight"].double()}),
        lambda w: w.update({"0.weight": w["0.weight"].reshape(3, 4)}),
        lambda w: w.update({"0.wait": w.pop("0.weight")}),
        lambda w: w["1.num_batches_tracked"].add_(1),
    ],
    ids=["one value", "dtype", "shape", "name", "buffer"],
)
def test_content_hash_sees_one_change(state, change):
    changed = {name: value.clone() for name, value in state.items()}
    assert content_hash(changed) == content_hash(state)
    change(changed)
    assert content_hash(changed) != content_hash(state)


def test_content_hash_is_stable_across_versions():
    weights = {"b": torch.tensor([1.0, -2.0], dtype=torch.bfloat16), "a": torch.arange(3), "scalar": torch.tensor(0.5)}
    assert content_hash(weights) == "5c30e69cba79a717d46432236374470cb62d9c7c5bdf9a42bff8f24c186c48aa"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda w: {"model": w, "optimizer": {"state": {}}},
        lambda w: {"model": {}, "model_ema": w},
        lambda w: {"state_dict": {f"module.{name}": value for name, value in w.items()}},
        lambda w: {f"_orig_mod.module.{name}": nn.Parameter(value, False) for name, value in w.items()},
    ],
    ids=["plain", "state_dict and args", "model", "ema", "ddp", "compiled parameters"],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_torch_file_in_its_usual_wrappings(tmp_path, state, wrap, suffix):
    torch.save(wrap(state), tmp_path / f"w{suffix}")
    loaded = load_file(tmp_path / f"w{suffix}")
    assert same(loaded, state)
    assert not any(isinstance(value, nn.Parameter) for value in loaded.values())


def test_torch_file_of_the_old_format(tmp_path, state):
    torch.save(state, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    assert same(load_file(tmp_path / "w.bin"), state)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "pickle protocol 4", "inside"])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, state, how):
    sentinel, path = tmp_path / "pwned", tmp_path / "w.pth"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Malicious(sentinel), protocol=4 if "4" in how else 2))
    else:
        content = {"state_dict": state, "x": Malicious(sentinel)} if how == "inside" else Malicious(sentinel)
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    refusal = "damaged or not a torch file" if "4" in how else r"is not opened: its pickle .* asks for \w+\.system"
    with pytest.raises(ValueError, match=refusal) as caught:
        load_file(path)
    assert "save the model's state_dict() as .safetensors" in str(caught.value)
    assert not sentinel.exists()


def test_pickled_module_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"asks for torch.nn.modules.linear.Linear"):
        load_file(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"is a TorchScript archive, which is code"):
        load_file(tmp_path / "clip.pt")


@pytest.mark.parametrize("keep", [0.5, 0.95, 3])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "old.pth"])
def test_truncated_file_is_named_damaged(tmp_path, state, name, keep):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "w.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(len(whole) * keep)])
    with pytest.raises(ValueError, match=f"{name} is damaged or no"):
        load_file(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_file_of_something_else_is_named_damaged(tmp_path, name):
    (tmp_path / name).write_text("<html>404 not found</html>\n" * 9)
    with pytest.raises(ValueError, match=f"{name} is damaged or no"):
        load_file(tmp_path / name)


def test_empty_file_is_named(tmp_path):
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ValueError, match=r"is empty; copy or download it again"):
        load_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"student": {"w": torch.ones(1)}, "teacher": {"w": torch.ones(1)}}, "'student', 'teacher'"),
        ({"w": torch.ones(1), "epoch": 3}, "'epoch'"),
        ({}, "nothing"),
        (torch.ones(3), "nothing"),
        ([torch.ones(3)], "nothing"),
        ({"model": None}, "nothing"),
    ],
)
def test_file_without_a_state_dict_says_what_it_holds(tmp_path, content, found):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"(holds {found} instead of tensors|is damaged or not a torch file)"):
        load_file(tmp_path / "w.pth")


def test_missing_file_names_near_ones(tmp_path):
    for name in ("vit_base.safetensors", "vit_large.npz", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"vit_bsae.safetensors; did you mean vit_base.safetensors\?"):
        check_file(tmp_path / "vit_bsae.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds vit_base.safetensors, vit_large.npz"):
        check_file(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        check_file(tmp_path / "nowhere" / "w.pth")


def test_folder_and_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; give the weights file itself. It holds no weights"):
        check_file(tmp_path)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has the suffix '.onnx'; weights are read from .safetensors, .npz, .pth"):
        check_file(tmp_path / "w.onnx")


def test_npz_is_left_to_timm(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.ones(2))
    with pytest.raises(ValueError, match=r"layout of Google's ViTs, which only timm's ViTs read"):
        load_file(tmp_path / "w.npz")


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_original_google_checkpoint_loads_with_identical_outputs(tmp_path, prefix):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too are told apart
            parameter.copy_(torch.randn_like(parameter) * 0.05)
        google_npz(theirs, tmp_path / "vit.npz", prefix)
        ours = create("vit_tiny_patch16_224", pretrained=str(tmp_path / "vit.npz"))
        images = torch.randn(2, 3, 224, 224)
        assert torch.equal(ours(images), theirs.forward_head(theirs.forward_features(images), pre_logits=True))
    assert ours.weights.source == "file"
    assert ours.weights.sha256 == content_hash({k: v for k, v in theirs.state_dict().items() if k[:5] != "head."})


def test_unreachable_hub_names_the_three_ways_out():
    message = str(hub_unreachable("vit_base_patch16_224.orig_in21k", OSError("no route to host.\nmore")))
    assert message == (
        "The weights of 'vit_base_patch16_224.orig_in21k' could not be fetched: no model hub could be reached, or none "
        "has them (OSError: no route to host). Either give a file you have (pretrained: PATH, or under weights/ of the "
        "cache), or take the embedded backbone, which needs no hub (backbone: vit_small_patch14_saliency), or ask for "
        "random weights (pretrained: none)."
    )
