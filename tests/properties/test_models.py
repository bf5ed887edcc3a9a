"""Prompts in a sequence, merging, images of any size, and adapters on disk."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tests.adapters import make
from tests.zoo import MODELS, backbone, image, shake
from vpeft import adapter_file
from vpeft.backbones import load_timm, wrap
from vpeft.methods import build
from vpeft.methods.vpt import VPT
from vpeft.tuned import Tuned

PREFIXED = ["timm_vit", "timm_registers", "open_clip", "hf_registers", "timm_dinov3"]


def vpt(name: str, prompts: int, deep: bool) -> tuple[Any, VPT]:
    body = backbone(name)
    (method,) = build({"name": "vpt", "prompts": prompts, "deep": deep, "dropout": 0.0}, body)
    assert isinstance(method, VPT)
    return body, method


@given(st.sampled_from([*PREFIXED, "timm_swin"]), st.integers(1, 7), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=25)
def test_prompts_go_in_behind_the_prefix_and_leave_every_other_token_as_it_was(name, prompts, deep, seed) -> None:
    body, method = vpt(name, prompts, deep)
    first = body.blocks[0]
    before = first.prefix
    method.attach(body)
    assert all(block.prefix == before + prompts for block in body.blocks)
    draw = torch.Generator().manual_seed(seed)
    h, w = first.grid
    shape = (2, h, w, first.dim) if body.windowed else (2, before + h * w, first.dim)
    x = torch.randn(shape, generator=draw)
    flat = x.flatten(1, -2)
    with torch.no_grad():
        put = method.layers[0].insert(x)
        tokens = put.flatten(1, -2)
        assert tokens.shape == (2, prompts + flat.shape[1], first.dim)
        assert torch.equal(tokens[:, :before], flat[:, :before])
        assert torch.equal(tokens[:, before : before + prompts], method.tokens(0, 2))
        assert torch.equal(tokens[:, before + prompts :], flat[:, before:])
        if deep and body.blocks[1].dim == first.dim:
            again = method.layers[1].replace(put).flatten(1, -2)
            assert torch.equal(again[:, before : before + prompts], method.tokens(1, 2))
            assert torch.equal(again[:, before + prompts :], flat[:, before:])
        if not body.windowed:
            assert torch.equal(method.layers[0].remove(put), x)


@given(st.sampled_from(["timm_vit", "timm_registers"]), st.integers(1, 9), st.booleans())
@settings(max_examples=12)
def test_prompts_that_no_branch_reads_change_nothing(name, prompts, deep) -> None:
    body, method = vpt(name, prompts, deep)
    for key, parameter in body.model.named_parameters():
        if "attn.proj." in key or "mlp.fc2." in key:
            parameter.data.zero_()  # every block hands on what it gets
    with torch.no_grad():
        plain = body(image())
        assert torch.equal(Tuned(body, [method], nn.Identity()).eval()(image()), plain)


@given(
    st.sampled_from(["lora", "dora", "lora_fa", "krona"]),
    st.integers(1, 6),
    st.floats(0.1, 8),
    st.sets(st.sampled_from(["q", "k", "v", "proj", "fc1", "fc2"]), min_size=1),
    st.integers(0, 99),
)
@settings(max_examples=20)
def test_a_merged_backbone_computes_what_the_methods_compute(name, rank, alpha, targets, seed) -> None:
    options: dict[str, Any] = {"factor": 2, "scale": alpha} if name == "krona" else {"rank": rank, "alpha": alpha}
    body = backbone("timm_vit")
    torch.manual_seed(seed)
    model = shake(Tuned(body, build({"name": name, "targets": sorted(targets), **options}, body), nn.Identity()), 0.05)
    model.eval()
    before = {key: value.clone() for key, value in body.model.state_dict().items()}
    merged, plain = model.merge(), backbone("timm_vit")
    plain.model.load_state_dict(merged, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-4, atol=1e-4)
    changed = {key for key, value in merged.items() if not torch.equal(value, before[key])}
    assert changed
    assert all(torch.equal(value, before[key]) for key, value in body.model.state_dict().items())  # nothing in place


@given(st.sampled_from(["timm_vit", "timm_registers", "timm_swin"]), st.integers(2, 7), st.integers(2, 7))
@settings(max_examples=20)
def test_a_model_of_any_size_runs_in_our_loop_as_in_its_own(name, rows, columns) -> None:
    model: Any = MODELS[name]().eval()
    patch = model.patch_embed.patch_size[0] * (2 if name == "timm_swin" else 1)  # a map halves at a merging
    size = (rows * patch, columns * patch)
    before = None if name == "timm_swin" else model.pos_embed.detach().clone()
    own = copy.deepcopy(model)
    load_timm.resize(model, model.patch_embed.img_size, name)
    for key, value in model.state_dict().items():
        assert torch.equal(value, own.state_dict()[key])  # its own size changes no bit
    load_timm.resize(model, size, name)
    body = wrap(model, name)
    if before is not None:
        kept = model.num_prefix_tokens if not model.no_embed_class else 0
        assert model.pos_embed.shape[1] == kept + rows * columns
        assert torch.equal(model.pos_embed[:, :kept], before[:, :kept])
        bound = before[:, kept:].abs().max() * 1.5  # a cubic overshoots a little, and goes nowhere else
        assert model.pos_embed[:, kept:].abs().max() <= bound
    else:
        assert body.blocks[0].grid == (2 * rows, 2 * columns)
    with torch.no_grad():
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(body(x), model(x), rtol=1e-5, atol=1e-5)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__") | st.sampled_from(
    ["a.b", "é/文", "..", "a b", '"', "\\", "\n", "x" * 200]
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    found = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
        count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
        data = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
        found[name] = (data > 127 if dtype is torch.bool else data.view(dtype)).reshape(shape)
    return found


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@given(held=tensors(), said=st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9)))
def test_an_adapter_comes_back_to_the_bit_and_not_with_more_less_or_other_tensors(folder, held, said) -> None:
    path, manifest = folder / "a.safetensors", {**said, "format": 1, "vpeft": "0"}
    manifest.pop("sha256", None)
    adapter_file.write(path, held, manifest, "vpeft")
    read = adapter_file.read_manifest(path, "vpeft", 1)
    assert {key: value for key, value in read.items() if key != "sha256"} == manifest
    found = adapter_file.read_tensors(path, read)
    assert {name: bits(one) for name, one in found.items()} == {name: bits(one) for name, one in held.items()}
    more = {**held, "one more": torch.zeros(1)}
    others = [more, {name: held[name] for name in list(held)[1:]}] if held else [more]
    for other in others:
        save_file(other, path, {"vpeft": adapter_file.json.dumps(read)})
        with pytest.raises(ValueError, match="does not have the sha256"):
            adapter_file.read_tensors(path, read)


def test_a_delta_with_more_or_fewer_tensors_is_refused_whichever_it_is(tmp_path) -> None:
    tuned, _ = make()
    delta = tuned.delta()
    save_file({name: one.contiguous() for name, one in delta.items()}, tmp_path / "d.safetensors")
    whole = load_file(tmp_path / "d.safetensors")
    for name in whole:
        with pytest.raises(ValueError, match="lacks 1 tensors"):
            tuned.load_delta({other: one for other, one in whole.items() if other != name})
        with pytest.raises(ValueError, match="not of this model"):
            tuned.load_delta(whole | {f"{name}.more": whole[name]})
    tuned.load_delta(whole)
    assert all(torch.equal(one, whole[name]) for name, one in tuned.delta().items())
