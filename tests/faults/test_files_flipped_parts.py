"""What begins or ends a run beside adapters is seen to be damaged too: SAN's weights and meta-prompts."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.dense.clips import small_san
from tests.faults.damage import everywhere, refusal, seen
from vpeft.backbones import create
from vpeft.backbones.weights import content_hash
from vpeft.dense.openvocab_schema import SANConfig
from vpeft.dense.san_weights import load, read_manifest, save
from vpeft.meta_prompt import _save
from vpeft.methods import build
from vpeft.methods.dam_vp import DAMVP


def equal(one, other):
    return one[0] == other[0] and content_hash(one[1]) == content_hash(other[1])


def test_no_flipped_bit_of_sans_weights_is_loaded(tmp_path):
    san, file = small_san(), tmp_path / "san.safetensors"
    save(file, san, SANConfig(), 0, {"classes": ["sky", "sea"]})

    other = small_san()

    def read():
        told = read_manifest(file)
        load(other, file)
        return told, {name: tensor.clone() for name, tensor in other.delta().items()}

    whole, written = file.read_bytes(), read()
    found = [seen(file, one, read, lambda got: equal(got, written)) for one in everywhere(whole, 30)]
    assert sum(found) > 0.9 * len(found)
    assert all(found[-30:])


def test_sans_weights_of_before_the_manifest_had_a_hash_are_loaded(tmp_path):
    san, file = small_san(), tmp_path / "san.safetensors"
    save(file, san, SANConfig(), 0, {})
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["vpeft"])
    del told["entries"]
    save_file(load_file(file), file, {"vpeft": json.dumps(told)})
    assert load(small_san(), file) == told["sha256"]


def test_no_flipped_bit_of_a_meta_prompt_is_loaded(tmp_path):
    backbone, file = create("test_vit", "none", 32, 0), tmp_path / "meta.safetensors"
    (prompts,) = build([{"name": "dam_vp", "prompts": 2, "size": 4, "meta": str(file)}], backbone)
    assert isinstance(prompts, DAMVP)
    names = [name for name, _ in prompts.border.named_parameters()]
    sides = {name: torch.randn_like(p[:1]) for name, p in prompts.border.named_parameters()}
    _save(file, sides, {"tasks": ["colors"]})

    def read():
        with torch.no_grad():
            prompts._load(file)
        return {name: prompts.border.get_parameter(name).clone() for name in names}

    whole, written = file.read_bytes(), content_hash(read())
    found = [seen(file, one, read, lambda got: content_hash(got) == written) for one in everywhere(whole, 60)]
    assert all(found[-60:])
    file.write_bytes(whole[:-1])
    assert "is damaged or not a safetensors file" in refusal(read)
