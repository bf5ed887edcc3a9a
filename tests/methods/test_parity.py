"""Each method equals its official code: tokens, features and gradients of the golden files."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.golden import backbone, golden, images
from vpeft.backbones import Backbone
from vpeft.methods import build
from vpeft.tuned import Tuned

State = dict[str, Tensor]


def vpt_shallow(g: State, part: str) -> State:
    return {"prompts.0": g[f"{part}/prompt"]}


def vpt_deep(g: State, part: str) -> State:
    return {"prompts.0": torch.cat([g[f"{part}/prompt"], g[f"{part}/deep_prompt"]])}


def vpt_deep_proj(g: State, part: str) -> State:
    project = {f"project.{k}": g[f"{part}/prompt_proj.{k}"] for k in ("weight", "bias")}
    return {**vpt_deep(g, part), **project}


def adaptformer(g: State, part: str) -> State:
    names = [f"{linear}.{k}" for linear in ("down", "up") for k in ("weight", "bias")]
    return {f"adapters.{i}.{n}": g[f"{part}/blocks.{i}.adapter.{n}"] for i in range(3) for n in names}


def bottlenecks(g: State, part: str) -> State:
    names = [f"{linear}.{k}" for linear in ("down", "up") for k in ("weight", "bias")]
    return {f"adapters.{i}.bottleneck.{n}": g[f"{part}/blocks.{i}.adapter.{n}"] for i in range(3) for n in names}


def adapter_plus(g: State, part: str) -> State:
    return bottlenecks(g, part) | {f"adapters.{i}.scale": g[f"{part}/blocks.{i}.adapter.scale"] for i in range(3)}


def lora_noah(g: State, part: str) -> State:
    a = {f"down.{i}.weight": g[f"{part}/blocks.{i}.lora.A.weight"] for i in range(3)}
    b = {f"updates.{i}.up.0": g[f"{part}/blocks.{i}.lora.B.weight"] for i in range(3)}
    return a | b


def lora_adapter_plus(g: State, part: str) -> State:
    pairs = [(i, j, role) for i in range(3) for j, role in enumerate("qk")]
    a = {f"down.{2 * i + j}.weight": g[f"{part}/blocks.{i}.lora_{role}.down.weight"] for i, j, role in pairs}
    b = {f"updates.{i}.up.{j}": g[f"{part}/blocks.{i}.lora_{role}.up.weight"] for i, j, role in pairs}
    return a | b


def ssf(g: State, part: str) -> State:
    places = ["norm1", "qkv", "proj", "norm2", "fc1", "fc2"]
    maps = ["patch_embed", "norm", *(f"blocks.{i}.{place}" for i in range(3) for place in places)]
    names = {"gamma": "scale", "beta": "shift"}
    return {f"pairs.{i}.{ours}": g[f"{part}/{m}.{names[ours]}"] for i, m in enumerate(maps) for ours in names}


def dtl(g: State, part: str) -> State:
    side = {f"side.{i}.{k}": g[f"{part}/side.{i}.{k}"] for i in range(3) for k in "AB"}
    fusion = f"{part}/fusion.weight"
    return side | ({"fusion.32.weight": g[fusion]} if fusion in g else {})


def convpass(g: State, part: str) -> State:
    branches = [b for b in ("attn", "mlp") if f"{part}/blocks.0.convpass_{b}.conv.weight" in g]
    places = [f"blocks.{i}.convpass_{branch}" for i in range(3) for branch in branches]
    names = [f"{layer}.{k}" for layer in ("down", "conv", "up") for k in ("weight", "bias")]
    return {f"adapters.{i}.{n}": g[f"{part}/{place}.{n}"] for i, place in enumerate(places) for n in names}


def fact(g: State, part: str) -> State:
    return {f"factors.32.{ours}": g[f"{part}/{ours.upper()}.weight"] for ours in "uv"}


def fact_tt(g: State, part: str) -> State:
    maps = [(f"blocks.{i}", roles) for i in range(3) for roles in (("q", "k", "v"), ("proj",), ("fc1",), ("fc2",))]
    cores = [torch.cat([g[f"{part}/{b}.sigma_{role}.weight"] for role in roles]) for b, roles in maps]
    return fact(g, part) | {f"updates.{i}.core.s": core for i, core in enumerate(cores)}


def fact_tk(g: State, part: str) -> State:
    return fact(g, part) | {f"tensors.32.{ours}": g[f"{part}/{ours.upper()}"] for ours in "cp"}


CASES: dict[str, tuple[dict, Callable[[State, str], State]]] = {
    "cls_dtl": ({"name": "dtl", "first": 1}, dtl),
    "cls_dtl_plus": ({"name": "dtl", "first": 1, "kernel": 3}, dtl),
    "cls_dtl_plus_k4": ({"name": "dtl", "first": 1, "kernel": 4}, dtl),
    "cls_vpt_shallow": ({"name": "vpt", "prompts": 4, "deep": False}, vpt_shallow),
    "cls_vpt_deep": ({"name": "vpt", "prompts": 4}, vpt_deep),
    "cls_vpt_deep_proj": ({"name": "vpt", "prompts": 4, "project": 8}, vpt_deep_proj),
    "cls_adaptformer": ({"name": "adaptformer", "bottleneck": 8}, adaptformer),
    "cls_adapter_noah": ({"name": "pfeiffer", "bottleneck": 8}, bottlenecks),
    "cls_adapter_plus": ({"name": "adapter_plus", "bottleneck": 8}, adapter_plus),
    "cls_lora_noah": (
        {"name": "lora", "rank": 4, "alpha": 4.0, "targets": ["qkv"], "shared_a": True, "dropout": 0.1},
        lora_noah,
    ),
    "cls_convpass": ({"name": "convpass", "scale": 0.5}, convpass),
    "cls_convpass_attn": ({"name": "convpass", "scale": 0.5, "attention_only": True}, convpass),
    "cls_fact_tt": ({"name": "fact_tt", "rank": 4, "scale": 0.5}, fact_tt),
    "cls_fact_tk": ({"name": "fact_tk", "rank": 4, "scale": 0.5}, fact_tk),
    "cls_ssf": ({"name": "ssf"}, ssf),
    "cls_lora_adapter_plus": ({"name": "lora", "rank": 4, "alpha": 4.0, "targets": ["q", "k"]}, lora_adapter_plus),
}

# Files of code whose blocks hand on what the method adds after a block; elsewhere it is added outside of them.
WITHIN = {"cls_adapter_plus"}


def record(body: Backbone, seen: list[Tensor]) -> None:
    for block in body.blocks:
        block.after(lambda x: seen.append(x) or x)


@pytest.mark.parametrize("file", CASES)
def test_tokens_features_and_gradients_equal_the_official_code(file):
    spec, names = CASES[file]
    g, body = golden(file), backbone()
    (method,) = build(spec, body)
    method.load_state_dict(names(g, "method"))
    seen: list[Tensor] = []
    if file not in WITHIN:
        record(body, seen)
    tuned = Tuned(body, [method], nn.Identity()).eval()
    if file in WITHIN:
        record(body, seen)

    features = tuned(images())
    (features * g["cotangent"]).sum().backward()

    torch.testing.assert_close(features, g["output/features"], atol=1e-5, rtol=1e-5)
    for index, tokens in enumerate(seen):
        torch.testing.assert_close(tokens[:1], g[f"output/tokens_block{index}"], atol=5e-5, rtol=1e-5)
    gradients = names(g, "grad")
    assert {name for name, _ in method.named_parameters()} == set(gradients)
    for name, parameter in method.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-4, (name, difference)


def test_the_backbone_alone_equals_the_golden_one():
    torch.testing.assert_close(
        backbone()(images()), golden("cls_vpt_deep")["output/plain_features"], atol=1e-5, rtol=1e-5
    )
