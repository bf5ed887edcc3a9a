"""BI-Adapter: levels, gradients and the bits in a file."""

import itertools
import json
import math
import statistics

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.adapters import images, make
from tests.zoo import backbone
from vpeft.checkpoint import load_adapter, save_adapter
from vpeft.methods import build
from vpeft.methods.bi_adapter import Quantised, encode, from_bits, levels, to_bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_medians_of_their_bins_and_bins_end_halfway(bits):
    values, boundaries = levels(bits)
    normal = statistics.NormalDist()
    assert values.shape == (2**bits,)
    torch.testing.assert_close(values, -values.flip(0))
    ends = [0.0, *(normal.cdf(b) for b in boundaries.tolist()), 1.0]
    medians = [normal.inv_cdf((a + b) / 2) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(values, torch.tensor(medians), atol=1e-3, rtol=1e-3)


def test_one_bit_is_the_quartile():
    values, boundaries = levels(1)
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0]) * statistics.NormalDist().inv_cdf(0.75))
    assert boundaries.tolist() == [0.0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_output_and_gradient_equal_the_equations(bits):
    torch.manual_seed(0)
    layer = Quantised(16, 12, bits)
    torch.nn.init.normal_(layer.weight, mean=0.01, std=0.02)
    x, cotangent = torch.randn(5, 16), torch.randn(5, 12)
    out = layer(x)
    (out * cotangent).sum().backward()

    weight = layer.weight.detach().clone().requires_grad_()
    w = (weight - weight.mean()) / (weight.std() + 1e-5)
    values, boundaries = levels(bits)
    # The sum of steps, as the official code writes q, and the identity as its gradient.
    q = (torch.sign(w[..., None] - boundaries) * (values[1:] - values[:-1]) / 2).sum(-1)
    wanted = x @ ((w + (q - w).detach()) * weight.std() + weight.mean()).T
    (wanted * cotangent).sum().backward()
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert (layer.weight.grad - weight.grad).abs().max() < 1e-4 * weight.grad.abs().max()


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_come_back_and_leave_no_gap(bits):
    codes = torch.randint(2**bits, (1001,), generator=torch.Generator().manual_seed(bits))
    packed = to_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(1001 * bits / 8)
    assert torch.equal(from_bits(packed, bits, 1001), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_file_holds_the_bits_and_a_loaded_adapter_computes_the_same(tmp_path, bits):
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model, manifest = make({"name": "bi_adapter", "bottleneck": 32, "bits": bits, "scale": 0.5})
    save_adapter(path, model, manifest)
    weights = sum(p.numel() for p in model.methods[0].parameters())
    head = sum(p.numel() for p in model.head.parameters())
    matrices = 2 * len(model.methods[0].adapters)
    with safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["vpeft"])
    assert text["method"][0]["bits"] == bits
    stored = sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())
    assert stored == math.ceil(bits * weights / 8) + 8 * matrices + 4 * head
    assert path.stat().st_size < stored + 2048, "manifest and header take less than 2 KiB"

    loaded, _ = load_adapter(path)
    assert torch.equal(loaded(images()), model(images()))
    save_adapter(again, loaded, manifest)
    first, second = load_file(path), load_file(again)
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_weights_of_tiny_deviation_fall_on_their_level_again():
    model, _ = make({"name": "bi_adapter", "bits": 8})
    method = model.methods[0]
    with torch.no_grad():
        for p in method.parameters():
            p.mul_(1e-4)
    before = model(images())
    method.load_state_dict(method.unpack(method.pack(method.state_dict())))
    assert torch.equal(model(images()), before)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    model, manifest = make({"name": "bi_adapter", "bits": 2})
    manifest["method"] = [{"name": "bi_adapter", "bits": 4}]
    save_adapter(path, model, manifest)
    with pytest.raises(ValueError, match=r"does not fit the model .* BiAdapter cannot unpack codes, statistics"):
        load_adapter(path)
    manifest["method"] = [{"name": "bi_adapter"}, {"name": "bi_adapter"}]
    save_adapter(path, model, manifest)
    with pytest.raises(ValueError, match=r"does not fit the model .* BiAdapter cannot unpack"):
        load_adapter(path)


def test_training_on_moves_weights_between_the_levels_that_were_saved():
    model, _ = make({"name": "bi_adapter"})
    method = model.methods[0]
    method.load_state_dict(method.unpack(method.pack(method.state_dict())))
    layer = method.adapters[0].down
    fixed = layer.fixed.clone()
    before, _ = encode(layer.weight, layer.fixed, layer.boundaries)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    after, used = encode(layer.weight, layer.fixed, layer.boundaries)
    assert torch.equal(used, fixed)
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bits": 0}, "bits is 0"), ({"bits": 9}, "bits is 9"), ({"bottleneck": 0}, "bottleneck is 0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^bi_adapter: {message}"):
        build({"name": "bi_adapter", **options}, backbone("timm_vit"))
