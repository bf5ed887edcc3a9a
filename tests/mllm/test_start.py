"""A run begins with the connector of an earlier stage, and with what else of it is trained the same way."""

import re
from typing import Any

import pytest
import torch

from mllm import adapt
from mllm.adapter import save_adapter
from mllm.blip2.adapter import save as save_stage
from mllm.blip2.model import Blip2, FirstStage
from mllm.connectors import resolve
from mllm.qformer import QFormer
from mllm.start import start_from
from mllm.vision import tower
from tests.adapters import save as save_classifier
from tests.mllm.adapters import NORMALIZATION, built, saved
from tests.mllm.models import CONNECTORS, NAMES, stored
from vpeft.backbones import create

LORA = {"name": "lora", "r": 2}
QFORMER = CONNECTORS[NAMES.index("qformer")]


@pytest.fixture
def name(tmp_path):
    return stored(tmp_path / "language")


def fresh(name, *options, **named) -> Any:
    """A model of a later run: what learns begins elsewhere."""
    model, _ = built(name, *options, **named)
    for parts in model.components().values():
        for _, parameter in parts:
            parameter.data += 1
    return model


def same(one, other, part):
    ours, theirs = one.delta(), other.delta()
    names = [key for key in theirs if key.startswith(part)]
    assert names
    return all(torch.equal(ours[key], theirs[key]) for key in names if key in ours)


def test_the_connector_is_taken(tmp_path, name, capsys):
    path = saved(tmp_path)
    model = fresh(name, method=LORA)
    start_from(path, model)
    assert same(model, built(name)[0], "connector.")
    assert capsys.readouterr().out == f"start: {path}: took connector mlp\n"


@pytest.mark.parametrize("method", [LORA, {"name": "prefix", "tokens": 2}, {"name": "full"}], ids=str)
def test_what_is_trained_the_same_way_goes_on(tmp_path, name, method, capsys):
    vision = {"name": "lora", "rank": 2}
    before, manifest = built(name, method=method, vision=vision)
    save_adapter(tmp_path / "a.safetensors", before, manifest)
    model = fresh(name, method=method, vision=vision)
    assert not same(model, before, "vision.")
    start_from(tmp_path / "a.safetensors", model, [vision], adapt.resolve(method))
    everything = f"what was trained in the vision tower and {method['name']} of the language model\n"
    assert capsys.readouterr().out.endswith(f"took connector mlp and {everything}")
    assert same(model, before, "vision.")
    assert same(model, before, "connector.")
    assert same(model, before, ("language.", "prefix."))


def test_a_list_of_one_method_is_the_method(tmp_path, name):
    vision = {"name": "lora", "rank": 2}
    before, manifest = built(name, vision=vision)
    save_adapter(tmp_path / "a.safetensors", before, manifest | {"method": [vision]})
    model = fresh(name, vision=vision)
    start_from(tmp_path / "a.safetensors", model, vision)
    assert same(model, before, "vision.")


@pytest.mark.parametrize(
    "configured", [{"name": "lora", "r": 2, "alpha": 1.0}, {"name": "lora", "r": 3}, {"name": "frozen"}], ids=str
)
def test_what_is_trained_otherwise_is_left_and_named(tmp_path, name, configured, capsys):
    before, manifest = built(name, method=LORA)
    save_adapter(tmp_path / "a.safetensors", before, manifest)
    model = fresh(name, method=configured)
    kept = {key: tensor.clone() for key, tensor in model.delta().items() if key.startswith("language.")}
    start_from(tmp_path / "a.safetensors", model, None, adapt.resolve(configured))
    assert "took connector mlp; left lora of the language model, which does not fit this run" in capsys.readouterr().out
    for key, tensor in kept.items():
        assert torch.equal(model.delta()[key], tensor)


def test_another_language_model_is_named_and_its_adapter_left(tmp_path, capsys):
    before, manifest = built(stored(tmp_path / "other", seed=4), method=LORA)
    save_adapter(tmp_path / "a.safetensors", before, manifest)
    start_from(tmp_path / "a.safetensors", fresh(stored(tmp_path / "language"), method=LORA))
    said = capsys.readouterr().out
    assert f"took connector mlp, trained beside other weights, of hf:{tmp_path / 'other'}; left lora" in said


def test_another_tower_or_connector_is_refused(tmp_path, name):
    path = saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"reads another vision tower: random seed 1 with .* Give the same vision\.back"
    ):
        start_from(path, fresh(name, seed=2))
    with pytest.raises(ValueError, match=r'is \{"name": "mlp", "depth": 2\} and not this run\'s: it lacks 2 tensors'):
        start_from(path, fresh(name, {"name": "linear"}))


def test_other_tokens_of_the_same_tower_are_refused(tmp_path, name):
    model, manifest = built(name)
    elsewhere = manifest["backbone"] | {"layer": manifest["backbone"]["layer"] - 1}
    save_adapter(tmp_path / "a.safetensors", model, manifest | {"backbone": elsewhere})
    with pytest.raises(
        ValueError, match=r"reads other tokens of the vision tower: vision\.layer was -3\. Give this run"
    ):
        start_from(tmp_path / "a.safetensors", fresh(name))


def stage(path, seed=1) -> Any:
    """The adapter of a first stage."""
    backbone = create("test_vit", "none", 64, seed)
    torch.manual_seed(5)
    qformer = QFormer(3, 64, dim=16, depth=2, heads=2, hidden=32, vocab=41)
    model = Blip2(tower(backbone), FirstStage(qformer, 64, embed=8))
    save_stage(
        path,
        model,
        {
            "kind": "blip2",
            "seed": seed,
            "backbone": {
                "name": "test_vit",
                "pretrained": "none",
                "image_size": [64, 64],
                "layer": -2,
                "prefix": False,
                "norm": False,
                "normalization": NORMALIZATION,
            },
            "method": {"name": "linear"},
            "connector": resolve({"name": "qformer"}),
            "loss": {},
            "tokenizer": {"name": "hf:x", "sha256": ""},
            "preparation": {"max_length": 8},
        },
    )
    return model.connector


def test_blip2s_second_stage_begins_with_the_qformer_of_the_first(tmp_path, name, capsys):
    theirs = stage(tmp_path / "a.safetensors")
    model = fresh(name, QFORMER)
    proj = model.connector.proj.weight.clone()
    start_from(tmp_path / "a.safetensors", model)
    assert "took the Q-Former of a first stage" in capsys.readouterr().out
    assert torch.equal(model.connector.qformer.queries, theirs.qformer.queries)
    assert torch.equal(model.connector.norm.weight, theirs.norm.weight)
    assert torch.equal(model.connector.proj.weight, proj)
    with pytest.raises(ValueError, match="reads another vision tower"):
        start_from(tmp_path / "a.safetensors", fresh(name, QFORMER, seed=2))


def test_a_published_projector_is_taken(tmp_path, name, capsys):
    theirs: Any = built(name)[0].connector
    state = {f"model.mm_projector.{key.removeprefix('layers.')}": t for key, t in theirs.state_dict().items()}
    torch.save(state, tmp_path / "mm_projector.bin")
    model = fresh(name)
    start_from(tmp_path / "mm_projector.bin", model)
    assert torch.equal(model.connector.layers[2].bias, theirs.layers[2].bias)
    assert "took the projector of a LLaVA" in capsys.readouterr().out


def test_what_is_no_start_is_refused(tmp_path, name):
    model = fresh(name)
    save_classifier(tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="is an adapter of vpeft, without a connector; give one of kind mllm or blip2"):
        start_from(tmp_path / "classifier.safetensors", model)
    saved(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"did you mean '{tmp_path}/adapter.safetensors'?")):
        start_from(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="There is no adapter"):
        start_from(tmp_path / "adapters.safetensors", model)
    (tmp_path / "b.safetensors").write_bytes(b"nothing here")
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        start_from(tmp_path / "b.safetensors", model)
